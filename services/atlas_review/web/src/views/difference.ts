/** Where two shapes of an organ differ, drawn over a slice. */

import type { Axis } from '../voxels/edits'
import type { Box } from '../voxels/solid'
import type { Vec3 } from './grid'
import { pixel, PLANES, type Block } from './planes'

/** A mask in a block, or one label of a map on the whole grid, with a box that holds it. */
export type Mask = Block | { map: () => Uint8Array; label: number; box: () => Box | null }

export interface Difference {
  one: Mask
  two: Mask
}

/** Apart from each other, and lighter or darker than what they lie on, for colour-blind eyes as well. */
export const ONLY_ONE = '#ffe14d'
export const ONLY_TWO = '#c400e0'
const ALPHA = 0.85

function colour(text: string): number {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)) as Vec3
  return pixel(r, g, b, ALPHA)
}

/** Whether a mask has the voxel (a, b) of a slice. */
function reader(mask: Mask, axis: Axis, at: number, dims: Vec3): (a: number, b: number) => boolean {
  const { across, up, through } = PLANES[axis]
  if ('map' in mask) {
    const strides = [1, dims[0], dims[0] * dims[1]] as const
    const [map, first] = [mask.map(), at * strides[through]]
    return (a, b) => map[first + a * strides[across] + b * strides[up]] === mask.label
  }
  const { voxels, sides, start } = mask
  const strides = [1, sides[0], sides[0] * sides[1]] as const
  const depth = at - start[through]
  if (depth < 0 || depth >= sides[through]) return () => false
  return (a, b) => {
    const [x, y] = [a - start[across], b - start[up]]
    return x >= 0 && y >= 0 && x < sides[across] && y < sides[up] && voxels[x * strides[across] + y * strides[up] + depth * strides[through]] !== 0
  }
}

/** `over` holds the pixels of the slice, row by row, both axes from the screen's far end. */
export function paintDifference({ one, two }: Difference, axis: Axis, at: number, dims: Vec3, over: Uint32Array): void {
  const { across, up } = PLANES[axis]
  const [width, height] = [dims[across], dims[up]]
  const [inOne, inTwo] = [reader(one, axis, at, dims), reader(two, axis, at, dims)]
  const [onlyOne, onlyTwo] = [colour(ONLY_ONE), colour(ONLY_TWO)]
  for (let b = height - 1, n = 0; b >= 0; b--) {
    for (let a = width - 1; a >= 0; a--, n++) {
      const first = inOne(a, b)
      if (first !== inTwo(a, b)) over[n] = first ? onlyOne : onlyTwo
    }
  }
}

function boxOf(mask: Mask): Box | null {
  if ('map' in mask) return mask.box()
  return { low: mask.start, high: mask.start.map((at, n) => at + mask.sides[n]! - 1) as Vec3 }
}

/** Voxels that only the first mask has, and only the second. */
export function countDifference({ one, two }: Difference, dims: Vec3): [number, number] {
  const counts: [number, number] = [0, 0]
  const boxes = [boxOf(one), boxOf(two)].filter((box) => box !== null)
  const [low, high] = [0, 1, 2].reduce(
    ([low, high], n) => [[...low, Math.min(...boxes.map((box) => box.low[n]!))], [...high, Math.max(...boxes.map((box) => box.high[n]!))]],
    [[], []] as [number[], number[]],
  ) as [Vec3, Vec3]
  for (let z = low[2]; z <= high[2]; z++) {
    const [inOne, inTwo] = [reader(one, 'axial', z, dims), reader(two, 'axial', z, dims)]
    for (let y = low[1]; y <= high[1]; y++) {
      for (let x = low[0]; x <= high[0]; x++) {
        const first = inOne(x, y)
        if (first !== inTwo(x, y)) counts[first ? 0 : 1] += 1
      }
    }
  }
  return counts
}
