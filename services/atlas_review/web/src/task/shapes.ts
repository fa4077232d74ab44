/** What others say of the active organ: each label version and each model, to look at and to take. */

import { t } from '../i18n'
import { get, path, query, type Shape } from '../api'
import { button, h, replace, title } from '../dom'
import { attempt, say } from '../notices'
import { Differences } from './differences'
import type { RegionList } from './region-list'
import type { Workspace } from './workspace'

export class Shapes {
  readonly element = h('section', { 'aria-label': t('Shapes') })
  private shapes: Shape[] = []
  private organ = ''
  private shown: Shape | null = null
  readonly differences: Differences

  constructor(
    private readonly space: Workspace,
    private readonly regions: RegionList,
  ) {
    this.differences = new Differences(space, () => this.fetch())
  }

  /** Another organ has its own shapes; they are asked for when one is to be seen. */
  draw(): void {
    const { organ, locked } = this.space
    if (organ.name !== this.organ) this.forget()
    else this.differences.draw()
    const take = (text: string, key: string, whole: boolean): HTMLElement => {
      const element = button(text, () => this.take(whole), { key })
      element.disabled = locked || !this.shown || (!whole && !this.regions.current)
      return element
    }
    replace(
      this.element,
      h('h2', {}, t('Shapes of {organ}', { organ: title(organ.name) })),
      button(t('Next shape'), () => this.next(), { key: 'h' }),
      h('output', { 'aria-label': t('Shape') }, this.shown ? describe(this.shown) : ''),
      h('div', { class: 'row' }, take(t('Take in region'), 'u', false), take(t('Take whole'), 'U', true)),
      this.differences.element,
    )
  }

  private forget(): void {
    this.organ = this.space.organ.name
    this.shapes = []
    this.shown = null
    this.space.work.viewer.showShape(null)
    this.differences.follow()
  }

  /** Every shape of the active organ. */
  private async fetch(): Promise<Shape[]> {
    const { organ, work } = this.space
    if (this.shapes.length > 0) return this.shapes
    const address = `cases/${encodeURIComponent(work.detail.case_id)}/shapes`
    const { shapes } = await get<{ shapes: Shape[] }>(`${address}${query({ organ: organ.name })}`)
    if (organ === this.space.organ) this.shapes = shapes
    return shapes
  }

  /** Outline the next shape; after the last comes none. */
  next(): void {
    attempt(async () => {
      const { organ, work } = this.space
      await this.fetch()
      if (organ !== this.space.organ) return
      if (this.shapes.length === 0) say(t('Nobody has given this organ a shape.'))
      const shape = this.shapes[this.shown ? this.shapes.indexOf(this.shown) + 1 : 0] ?? null
      this.shown = shape
      await work.showShape(shape && path(shape.url))
      this.draw()
    })
  }

  /** The organ becomes as shown: as a whole, or in the box of the region that was visited last. */
  take(whole: boolean): void {
    const region = this.regions.current
    if (this.space.locked) return
    if (!this.shown) say(t('Choose a shape first (h).'))
    else if (!whole && !region) say(t('Go to a region first (j).'))
    else if (!this.space.work.viewer.takeShape(whole ? null : region!.box_ijk)) say(t('The organ has this shape already.'))
  }
}

function describe(shape: Shape): string {
  const what = shape.model || shape.author || ''
  const size = shape.volume_ml === null ? '' : `${shape.volume_ml.toFixed(1)} ml`
  return [title(shape.kind), what, size, shape.in_force && t('in force')].filter(Boolean).join(', ')
}
