/** The organs: which one is active, which are shown, edited and judged. */

import { t } from '../i18n'
import type { Organ } from '../api'
import { h, replace, swatch, title } from '../dom'
import type { Workspace } from './workspace'

/** Of more organs than this, those that concern the reader come first and the others are folded away. */
const FIRST = 30

export class OrganList {
  readonly element = h('div', {})
  private readonly find = h('input', {
    type: 'search',
    placeholder: t('Find an organ'),
    'aria-label': t('Find an organ'),
    oninput: () => this.filter(),
  })
  private readonly first = h('ul', { class: 'organs', 'aria-label': t('Organs') })
  private readonly others = h('ul', { class: 'organs', 'aria-label': t('Other organs') })
  private readonly summary = h('summary', {})
  private readonly folded = h('details', { class: 'folded' }, this.summary, this.others)
  /** Labels of the organs that are hidden in the views. */
  private readonly hidden = new Set<number>()

  constructor(private readonly space: Workspace) {}

  draw(): void {
    const { organs } = this.space.context
    const many = organs.length > FIRST
    const [first, others] = many ? this.parted(organs) : [organs, []]
    replace(this.first, first.map((organ) => this.row(organ)))
    replace(this.others, others.map((organ) => this.row(organ)))
    this.summary.textContent = t('Other organs ({count})', { count: others.length })
    if (!this.element.hasChildNodes()) replace(this.element, many && this.find, this.first, many && this.folded)
    this.filter()
  }

  /** The active organ, those that were drawn, and those that drive the case's place; then the others, as in the scheme. */
  private parted(organs: readonly Organ[]): [Organ[], Organ[]] {
    const urgency = new Map(this.space.work.detail.organs.map((one) => [one.organ, one.weight]))
    const weight = (organ: Organ): number =>
      organ === this.space.organ || this.space.work.changed.has(organ.name) ? Infinity : urgency.get(organ.name) ?? 0
    const sorted = organs.filter((organ) => weight(organ) > 0).sort((a, b) => weight(b) - weight(a))
    const near = new Set(sorted.slice(0, FIRST))
    return [sorted.filter((organ) => near.has(organ)), organs.filter((organ) => !near.has(organ))]
  }

  /** Shows the organs whose names hold what was entered, and unfolds the others while anything is. */
  private filter(): void {
    const sought = this.find.value.trim().toLowerCase()
    for (const row of [...this.first.children, ...this.others.children]) {
      (row as HTMLElement).hidden = !row.textContent!.toLowerCase().includes(sought)
    }
    if (sought) this.folded.open = true
  }

  private row(organ: Organ): HTMLElement {
    const { work } = this.space
    const task = this.space.organTask(organ.name)
    const active = organ === this.space.organ
    const shown = h('input', {
      type: 'checkbox',
      checked: !this.hidden.has(organ.label),
      'aria-label': t('Show {organ}', { organ: title(organ.name) }),
      onchange: () => this.show(organ, shown.checked),
    })
    const pick = h(
      'button',
      { type: 'button', class: 'pick', 'aria-pressed': String(active), 'aria-label': t('Draw {organ}', { organ: title(organ.name) }), onclick: () => this.space.activate(organ) },
      swatch(organ.color),
      h('span', { class: 'name' }, title(organ.name)),
      h('span', { class: 'number', title: t('disagreement of the models') }, task?.disagreement?.toFixed(2) ?? ''),
      h('span', { class: 'number', title: t('attention in all, in ml') }, task && task.attention_ml > 0 ? `${task.attention_ml.toFixed(1)} ml` : ''),
    )
    const { editor } = work.viewer
    const lock = h('input', {
      type: 'checkbox',
      class: 'lock',
      checked: editor.locked.has(organ.label),
      'aria-label': t('Lock {organ}', { organ: title(organ.name) }),
      title: t('Locked: no tool changes it'),
      onchange: () => (lock.checked ? editor.locked.add(organ.label) : editor.locked.delete(organ.label)),
    })
    const verdict = task?.verdict
    return h(
      'li',
      { class: active ? 'active' : '' },
      shown,
      pick,
      lock,
      work.changed.has(organ.name) && h('span', { class: 'mark edited', title: t('changed by your drawing') }, t('edited')),
      verdict && h('span', { class: `mark ${verdict}` }, verdict === 'confirmed' ? t('✓ confirmed') : t('needs revision')),
    )
  }

  private show(organ: Organ, shown: boolean): void {
    if (shown) this.hidden.delete(organ.label)
    else this.hidden.add(organ.label)
    this.space.work.viewer.setOrganShown(organ.label, shown)
  }
}
