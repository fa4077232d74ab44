/** The attended regions, largest first: a click or a key moves the crosshair to one. */

import { t } from '../i18n'
import type { Region } from '../api'
import { colourOf } from '../context'
import { h, replace, swatch, title } from '../dom'
import type { Workspace } from './workspace'

export class RegionList {
  readonly element = h('ol', { class: 'regions', 'aria-label': t('Attended regions') })
  private at = -1

  constructor(private readonly space: Workspace) {}

  private get regions(): Region[] {
    return this.space.work.regions
  }

  draw(): void {
    const rows = this.regions.map((region, i) => this.row(region, i))
    replace(this.element, rows.length ? rows : h('li', { class: 'quiet' }, t('This case has no attended regions.')))
  }

  private row(region: Region, i: number): HTMLElement {
    const ml = `${region.region_ml.toFixed(2)} ml`
    return h(
      'li',
      {},
      h(
        'button',
        { type: 'button', 'aria-label': t('Region {number}: {organ}, {ml} ml', { number: i + 1, organ: title(region.organ), ml: region.region_ml.toFixed(2) }), title: t('volume of the region'), onclick: () => this.jumpTo(i) },
        swatch(colourOf(this.space.context, region.organ)),
        h('span', { class: 'name' }, title(region.organ)),
        h('span', { class: 'visited', title: t('visited'), hidden: !this.space.work.visited.has(region) }, '✓'),
        h('span', { class: 'number' }, ml),
      ),
    )
  }

  /** The region that was visited last. */
  get current(): Region | undefined {
    return this.regions[this.at]
  }

  /** Go to a region, and make its organ the active one. */
  jumpTo(at: number): void {
    const region = this.regions[at]
    if (!region) return
    this.at = at
    this.space.work.visited.add(region)
    this.space.work.viewer.jumpTo(region.peak_mm)
    this.space.activateNamed(region.organ)
    this.element.children[at]?.querySelector('.visited')?.removeAttribute('hidden')
    ;[...this.element.children].forEach((item, i) => item.classList.toggle('active', i === at))
    this.element.children[at]?.scrollIntoView({ block: 'nearest' })
  }

  /** To the next region or the previous one; the first and the last are ends. */
  step(by: number): void {
    this.jumpTo(Math.min(Math.max(this.at + by, 0), this.regions.length - 1))
  }
}
