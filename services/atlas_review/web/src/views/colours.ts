/** Colours of labels and of attention. */

import type { Organ } from '../api'

/** Steps of a stored attention map per unit of Eq. 4: its bytes are multiples of 1/136. */
const ATTENTION_LEVELS = 136
/**
 * From pale green to mint: at least ΔE 24 from every organ's colour of the atlas, also under protanopia,
 * deuteranopia and tritanopia (Machado et al. 2009).
 */
const WEAK = [153, 204, 153, 0.55] as const
const STRONG = [204, 255, 204, 1] as const

/** [R, G, B, alpha] of every label; hidden organs and values without an organ are clear. */
export function labelColours(organs: readonly Organ[], hidden: ReadonlySet<number>, alpha: number): number[][] {
  const colours = Array.from({ length: 256 }, () => [0, 0, 0, 0])
  for (const { label, color } of organs) {
    const rgb = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16))
    colours[label] = [...rgb, hidden.has(label) ? 0 : alpha]
  }
  return colours
}

/** [R, G, B, alpha] of every stored value of attention; clear below the threshold (Eq. 4). */
export function attentionColours(threshold: number, alpha: number): number[][] {
  const lowest = Math.max(1, Math.ceil(threshold * ATTENTION_LEVELS))
  return Array.from({ length: 256 }, (_, value) => {
    if (value < lowest) return [0, 0, 0, 0]
    const share = Math.min((value - lowest) / Math.max(ATTENTION_LEVELS - lowest, 1), 1)
    const [r, g, b, a] = WEAK.map((one, n) => one + (STRONG[n]! - one) * share)
    return [r!, g!, b!, a! * alpha]
  })
}
