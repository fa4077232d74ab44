/** The organs: which one is active, which are shown, edited and judged. */

import type { Organ } from '../api'
import { h, replace, swatch, title } from '../dom'
import type { Workspace } from './workspace'

export class OrganList {
  readonly element = h('ul', { class: 'organs', 'aria-label': 'Organs' })
  /** Labels of the organs that are hidden in the views. */
  private readonly hidden = new Set<number>()

  constructor(private readonly space: Workspace) {}

  draw(): void {
    replace(this.element, this.space.context.organs.map((organ) => this.row(organ)))
  }

  private row(organ: Organ): HTMLElement {
    const { work } = this.space
    const task = this.space.organTask(organ.name)
    const active = organ === this.space.organ
    const shown = h('input', {
      type: 'checkbox',
      checked: !this.hidden.has(organ.label),
      'aria-label': `Show ${title(organ.name)}`,
      onchange: () => this.show(organ, shown.checked),
    })
    const pick = h(
      'button',
      { type: 'button', class: 'pick', 'aria-pressed': String(active), 'aria-label': `Draw ${title(organ.name)}`, onclick: () => this.space.activate(organ) },
      swatch(organ.color),
      h('span', { class: 'name' }, title(organ.name)),
      h('span', { class: 'number', title: 'disagreement of the models' }, task?.disagreement?.toFixed(2) ?? ''),
      h('span', { class: 'number', title: 'attention' }, task && task.attention_ml > 0 ? `${task.attention_ml.toFixed(1)} ml` : ''),
    )
    const verdict = task?.verdict
    return h(
      'li',
      { class: active ? 'active' : '' },
      shown,
      pick,
      work.changed.has(organ.name) && h('span', { class: 'mark edited', title: 'changed by your drawing' }, 'edited'),
      verdict && h('span', { class: `mark ${verdict}` }, verdict === 'confirmed' ? '✓ confirmed' : 'needs revision'),
    )
  }

  private show(organ: Organ, shown: boolean): void {
    if (shown) this.hidden.delete(organ.label)
    else this.hidden.add(organ.label)
    this.space.work.viewer.setOrganShown(organ.label, shown)
  }
}
