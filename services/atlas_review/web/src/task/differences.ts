/** Where two shapes of the active organ differ: drawn over the views, and counted. */

import { t } from '../i18n'
import { path, type Shape } from '../api'
import { h, replace, select, swatch } from '../dom'
import { attempt } from '../notices'
import { ONLY_ONE, ONLY_TWO, type Mask } from '../views/difference'
import type { Box } from '../voxels/solid'
import type { Workspace } from './workspace'

type Kind = '' | 'mine' | 'original' | 'iteration' | 'theirs'

const NAMES: Record<Exclude<Kind, ''>, [one: string, two: string]> = {
  mine: [t('my drawing'), t('the label in force')],
  original: [t('the pseudo label'), t('the original')],
  iteration: [t('this iteration'), t('the last one')],
  theirs: [t('my drawing'), t('theirs')],
}

export class Differences {
  readonly element = h('div', { class: 'differences' })
  private kind: Kind = ''
  private text: HTMLElement[] = []
  private shown = false
  /** Label version that somebody else put into force meanwhile. */
  private theirs: { organ: string; url: string } | null = null

  constructor(
    private readonly space: Workspace,
    private readonly shapes: () => Promise<Shape[]>,
  ) {}

  draw(): void {
    if (this.shown && this.kind) this.text = this.told(this.kind, this.space.work.viewer.countDifference())
    const theirs = this.theirs?.organ === this.space.organ.name
    const kinds = (Object.keys(NAMES) as Exclude<Kind, ''>[]).filter((kind) => kind !== 'theirs' || theirs)
    const options = kinds.map((kind) => [kind, NAMES[kind].join(' – ')] as const)
    replace(
      this.element,
      select(t('Difference'), [['', t('none')], ...options], this.kind, (kind) => this.show(kind as Kind)),
      h('output', { 'aria-label': t('Difference') }, this.text),
    )
  }

  /** Another organ is the active one. */
  follow(): void {
    if (this.kind === 'theirs') this.kind = ''
    this.show(this.kind)
  }

  /** The active organ against the version that came into force meanwhile. */
  showTheirs(organ: string, url: string): void {
    this.theirs = { organ, url }
    this.space.activateNamed(organ)
    this.show('theirs')
  }

  private show(kind: Kind): void {
    this.kind = kind
    this.text = []
    this.shown = false
    const { organ, work } = this.space
    attempt(async () => {
      const masks = kind && (await this.masks(kind))
      if (kind !== this.kind || organ !== this.space.organ) return
      work.viewer.showDifference(masks ? { one: masks[0], two: masks[1] } : null)
      this.shown = Boolean(masks)
      if (kind && !masks) this.text = [h('span', {}, t('This organ has no such shape.'))]
      this.draw()
    })
    this.draw()
  }

  private told(kind: Exclude<Kind, ''>, ml: [number, number]): HTMLElement[] {
    return NAMES[kind].map((name, n) => h('span', { class: 'organ-tag' }, swatch(n ? ONLY_TWO : ONLY_ONE), t('only {shape}: {ml} ml', { shape: name, ml: ml[n]!.toFixed(1) })))
  }

  private async masks(kind: Exclude<Kind, ''>): Promise<[Mask, Mask] | null> {
    const { organ, work } = this.space
    const { editor } = work.viewer
    const box = (): Box | null => editor.box(organ.label)
    const drawn: Mask = { map: () => editor.map, label: organ.label, box }
    if (kind === 'mine') return [drawn, { map: () => editor.base, label: organ.label, box }]
    if (kind === 'theirs') {
      const map = await work.readMap(path(this.theirs!.url))
      const whole = work.viewer.boxOf(map, 1)
      return [drawn, { map: () => map, label: 1, box: () => whole }]
    }
    const shapes = await this.shapes()
    const found = (kind === 'original' ? (['pseudo', 'original'] as const) : (['pseudo', 'earlier'] as const)).map((one) => shapes.find((shape) => shape.kind === one))
    if (!found[0] || !found[1]) return null
    return [await work.readShape(path(found[0].url)), await work.readShape(path(found[1].url))]
  }
}
