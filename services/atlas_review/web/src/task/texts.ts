/** What the task page says of versions, places, drafts and questions. */

import { t, when } from '../i18n'
import { Problem, type LabelVersion, type Organ, type TaskDetail } from '../api'
import { title } from '../dom'
import type { SaveState } from '../drafts/autosave'
import type { Location } from '../viewer'

export const SAVED: Record<SaveState, string> = {
  clean: '',
  saving: t('Saving…'),
  local: t('Draft kept in this browser'),
  server: t('Draft saved'),
}

/** Why slices cannot be filled. */
export const OBSTACLES = {
  'not drawn': t('Draw this organ on two slices of one view first'),
  'no slice between': t('There is no slice between the last two that were drawn'),
} as const

export const NOTHING_CHANGED = t('That changes nothing in this organ.')

/** What a region holds, and by which rule. */
export function connectedHint(ml: number, tolerance: number, ranged: boolean): string {
  return ranged ? t('{ml} ml, in the HU range', { ml: ml.toFixed(1) }) : `${ml.toFixed(1)} ml, ± ${tolerance} HU`
}

/** Source, author, size and time of a label version. */
export function describeVersion(version: LabelVersion): string {
  return [title(version.source), version.author, `${version.volume_ml.toFixed(1)} ml`, when(version.created_at)].filter(Boolean).join(', ')
}

export function describeLocation(location: Location, organs: readonly Organ[]): string {
  const { ijk, mm } = location
  return [t('voxel {ijk}', { ijk: ijk.join(' ') }), `${mm.map((one) => one.toFixed(1)).join(' ')} mm`, describePlace(location, organs)].join(' · ')
}

/** Hounsfield units and organ. */
export function describePlace({ hu, label }: Location, organs: readonly Organ[]): string {
  const organ = organs.find((one) => one.label === label)
  return [`${Math.round(hu)} HU`, organ && title(organ.name)].filter(Boolean).join(' · ')
}

/** Why a task can only be looked at. */
export function describeReadOnly(why: Problem | string): string {
  return typeof why === 'string' ? why : why.sentence
}

/** What the first reader asked the second one to look at, or null. */
export function secondReadersQuestion(history: TaskDetail['history']): { by: string; note: string } | null {
  const asked = history.filter((one) => one.action === 'second reading').at(-1)
  const note = (asked?.detail as { note?: string } | undefined)?.note
  return asked && note ? { by: asked.who, note } : null
}
