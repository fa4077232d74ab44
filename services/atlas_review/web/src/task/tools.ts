/** Views, CT windows, tools and pen sizes that the task page offers, with their keys. */

import { t } from '../i18n'
import { WINDOWS, type Tool, type View, type WindowName } from '../viewer'

export const VIEWS: readonly (readonly [view: View, text: string, key: string])[] = [
  ['all', t('All'), 'm'],
  ['axial', t('Axial'), 'a'],
  ['coronal', t('Coronal'), 'c'],
  ['sagittal', t('Sagittal'), 's'],
]

export const WINDOW_NAMES = Object.keys(WINDOWS) as WindowName[]

export const TOOLS: readonly (readonly [tool: Tool, text: string, key: string])[] = [
  ['look', t('Look'), 'v'],
  ['pen', t('Pen'), 'b'],
  ['eraser', t('Eraser'), 'e'],
  ['fill', t('Fill'), 'f'],
  ['scissors', t('Scissors'), 'E'],
  ['region', t('Region'), 'q'],
  ['wire', t('Live wire'), 'W'],
  ['length', t('Length'), 'd'],
  ['roi', t('ROI'), 'g'],
]

/** Diameters of the round pen, in mm; 0: one voxel. */
export const PEN_SIZES = [0, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40]

/** The pen size that is `steps` larger (smaller, where negative), as far as there is one. */
export function penSizeAfter(size: number, steps: number): number {
  const at = Math.min(Math.max(PEN_SIZES.indexOf(size) + steps, 0), PEN_SIZES.length - 1)
  return PEN_SIZES[at]!
}

/** Tools that change nothing. */
export const READING: ReadonlySet<Tool> = new Set(['look', 'length', 'roi'])
