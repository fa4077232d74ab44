/**
 * Shape-based interpolation between two drawn slices (Raya and Udupa 1990): the signed distances to
 * the two outlines are blended, and the organ is where the blend is positive.
 */

import type { Axis } from './edits'

export type Dims = readonly [x: number, y: number, z: number]

interface Plane {
  width: number
  height: number
  /** Index in the volume of (column, row) on slice s. */
  at: (column: number, row: number, s: number) => number
}

export function planeOf(axis: Axis, [dx, dy, dz]: Dims): Plane {
  const index = (x: number, y: number, z: number): number => x + dx * (y + dy * z)
  if (axis === 'axial') return { width: dx, height: dy, at: (c, r, s) => index(c, r, s) }
  if (axis === 'coronal') return { width: dx, height: dz, at: (c, r, s) => index(c, s, r) }
  return { width: dy, height: dz, at: (c, r, s) => index(s, c, r) }
}

const FAR = 1e9
const STRAIGHT = 3
const DIAGONAL = 4 // the 3-4 chamfer: within 8 % of the Euclidean distance, two passes

/** Chamfer distance of every pixel to the nearest one where `mask` is `value`. */
function distance(mask: Uint8Array, width: number, height: number, value: number): Float32Array {
  const d = Float32Array.from(mask, (one) => (one === value ? 0 : FAR))
  const relax = (i: number, x: number, dxs: number, row: number, cost: number): void => {
    if (x + dxs < 0 || x + dxs >= width) return
    const j = i + dxs + row * width
    if (j >= 0 && j < d.length) d[i] = Math.min(d[i]!, d[j]! + cost)
  }
  for (let pass = 0; pass < 2; pass++) {
    const back = pass === 0 ? -1 : 1
    for (let n = 0; n < width * height; n++) {
      const i = pass === 0 ? n : width * height - 1 - n
      const x = i % width
      relax(i, x, back, 0, STRAIGHT)
      relax(i, x, 0, back, STRAIGHT)
      relax(i, x, -1, back, DIAGONAL)
      relax(i, x, 1, back, DIAGONAL)
    }
  }
  return d
}

function signed(mask: Uint8Array, width: number, height: number): Float32Array {
  const inside = distance(mask, width, height, 0)
  const outside = distance(mask, width, height, 1)
  return inside.map((d, i) => d - outside[i]!)
}

/** Write `label` into every slice strictly between `low` and `high`; `may` says which voxels it may take. */
export function interpolate(
  map: Uint8Array,
  dims: Dims,
  axis: Axis,
  [low, high]: readonly [number, number],
  label: number,
  may: (value: number) => boolean,
): void {
  const { width, height, at } = planeOf(axis, dims)
  const slice = (s: number): Float32Array => {
    const mask = new Uint8Array(width * height)
    for (let r = 0; r < height; r++) {
      for (let c = 0; c < width; c++) mask[c + r * width] = map[at(c, r, s)] === label ? 1 : 0
    }
    return signed(mask, width, height)
  }
  const [first, last] = [slice(low), slice(high)]
  for (let s = low + 1; s < high; s++) {
    const share = (s - low) / (high - low)
    for (let r = 0; r < height; r++) {
      for (let c = 0; c < width; c++) {
        const i = at(c, r, s)
        const inside = first[c + r * width]! * (1 - share) + last[c + r * width]! * share > 0
        if (inside && may(map[i]!)) map[i] = label
        else if (!inside && map[i] === label) map[i] = 0
      }
    }
  }
}
