/** The line below the views: where the crosshair is, and where the draft is kept. */

import { t } from '../i18n'
import { Problem, type Organ } from '../api'
import { h } from '../dom'
import type { SaveState } from '../drafts/autosave'
import { showError } from '../notices'
import type { Location } from '../viewer'
import { describeLocation, describePlace, SAVED } from './texts'

export class Foot {
  private readonly location = h('output', { class: 'where', 'aria-label': t('Crosshair') })
  private readonly draft = h('output', { class: 'saved', 'aria-label': t('Draft') })
  private readonly pointer = h('span', { class: 'quiet', 'aria-hidden': 'true' })
  readonly element = h('div', { class: 'row foot' }, this.location, this.pointer, this.draft)

  constructor(private readonly organs: readonly Organ[]) {}

  showLoading(share: number): void {
    this.location.textContent = t('CT: {percent} % loaded', { percent: Math.round(100 * share) })
  }

  showLocation(location: Location): void {
    this.location.textContent = describeLocation(location, this.organs)
  }

  /** What lies under the pointer; null where it is not over a view. */
  showPointer(location: Location | null): void {
    this.pointer.textContent = location ? t('pointer: {place}', { place: describePlace(location, this.organs) }) : ''
  }

  showSaved(state: SaveState, problem?: unknown): void {
    this.draft.textContent = SAVED[state]
    this.draft.dataset.state = state
    if (problem instanceof Problem) showError(problem)
  }
}
