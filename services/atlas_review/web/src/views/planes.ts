/** One slice of a case as pixels: the CT through its window, labels and attention over it. */

import type { Axis } from '../voxels/edits'
import { paintDifference, type Difference } from './difference'
import type { Axis3, Vec3 } from './grid'

/** Axes of a view in the patient: across (from the screen's right), up, and through. */
export const PLANES: Record<Axis, { across: Axis3; up: Axis3; through: Axis3; letters: [left: string, right: string, top: string, bottom: string] }> = {
  axial: { across: 0, up: 1, through: 2, letters: ['R', 'L', 'A', 'P'] },
  coronal: { across: 0, up: 2, through: 1, letters: ['R', 'L', 'S', 'I'] },
  sagittal: { across: 1, up: 2, through: 0, letters: ['A', 'P', 'S', 'I'] },
}

/** Below this a voxel is air, over which no attention is shown; lung lies above it. */
export const AIR_HU = -900
const HU_VALUES = 65536
const HU_ZERO = 32768
/** Alpha of an outline at least, and of the inside of an outlined organ. */
const OUTLINE = 0.95
const INSIDE = 0.06

/** A block of attention, or the mask of a shape, in RAS+ order, its first voxel at `start` of the grid of the CT. */
export interface Block {
  voxels: Uint8Array
  sides: Vec3
  start: Vec3
}

/** One row of a block, from its `start` on; null where the block has none. */
export function rowOf({ voxels, sides, start }: Block, y: number, z: number): Uint8Array | null {
  const [b, c] = [y - start[1], z - start[2]]
  if (b < 0 || c < 0 || b >= sides[1] || c >= sides[2]) return null
  const first = sides[0] * (b + sides[1] * c)
  return voxels.subarray(first, first + sides[0])
}

export interface Layers {
  hu: Int16Array
  labels: Uint8Array | null
  attention: Block | null
  /** Outlined over everything. */
  shape: Block | null
  /** Outlined like a shape: what a tool would take. */
  preview: Block | null
  difference: Difference | null
  /** The CT of a view through a slab, row by row; null: the slice itself. */
  projected: (axis: Axis, at: number) => Int16Array | null
  dims: Vec3
}

/** Colours of every stored value, as 32-bit pixels (the bytes R, G, B, A in memory). */
export class Palette {
  private readonly grey = new Uint32Array(HU_VALUES)
  /** By `label << 8 | attention`: attention lies over labels. */
  private readonly mixed = new Uint32Array(256 * 256)
  private readonly edges = new Uint32Array(256)
  outlined = false

  setWindow(centre: number, width: number): void {
    const low = centre - width / 2
    const scale = 255 / Math.max(width, 1)
    for (let n = 0; n < HU_VALUES; n++) {
      const level = Math.min(Math.max((n - HU_ZERO - low) * scale, 0), 255) | 0
      this.grey[n] = 0xff000000 | (level << 16) | (level << 8) | level
    }
  }

  /** `labels` and `attention`: [R, G, B, alpha 0..1] of every value. */
  setOverlays(labels: readonly number[][], attention: readonly number[][], outlined: boolean): void {
    this.outlined = outlined
    for (let label = 0; label < 256; label++) {
      const [r, g, b, alpha] = labels[label] as [number, number, number, number]
      this.edges[label] = pixel(r, g, b, alpha && Math.max(alpha, OUTLINE))
      const inside = outlined ? Math.min(alpha, INSIDE) : alpha
      for (let value = 0; value < 256; value++) {
        const [ar, ag, ab, over] = attention[value] as [number, number, number, number]
        const total = over + inside * (1 - over)
        const mix = (top: number, below: number): number => (total ? (top * over + below * inside * (1 - over)) / total : 0)
        this.mixed[(label << 8) | value] = pixel(mix(ar, r), mix(ag, g), mix(ab, b), total)
      }
    }
  }

  /**
   * Draw slice `at` of a view, both axes from the screen's far end: right is on the left, anterior or
   * superior on top. `ct` (null: it is up to date) and `over` hold its pixels, row by row.
   */
  draw(axis: Axis, at: number, { hu, labels, attention, shape, preview, difference, projected, dims }: Layers, ct: Uint32Array | null, over: Uint32Array): void {
    const { across, up, through } = PLANES[axis]
    const strides = [1, dims[0], dims[0] * dims[1]] as const
    const [width, height] = [dims[across], dims[up]]
    const step = strides[across]
    const { grey, mixed } = this
    const slab = ct && projected(axis, at)
    for (let row = 0, n = 0; row < height; row++, n += width) {
      const b = height - 1 - row
      const first = at * strides[through] + b * strides[up] + (width - 1) * step
      if (ct && slab) for (let m = n, i = b * width + width - 1; m < n + width; m++, i--) ct[m] = grey[slab[i]! + HU_ZERO]!
      else if (ct) for (let m = n, i = first; m < n + width; m++, i -= step) ct[m] = grey[hu[i]! + HU_ZERO]!
      if (labels) for (let m = n, i = first; m < n + width; m++, i -= step) over[m] = mixed[labels[i]! << 8]!
      else over.fill(0, n, n + width)
      if (attention) this.attend(attention, axis, at, b, first, step, hu, labels, over.subarray(n, n + width))
    }
    if (labels && this.outlined) this.drawEdges(labels, step, strides[up], at * strides[through], width, height, over)
    if (difference) paintDifference(difference, axis, at, dims, over)
    if (preview) outline(preview, axis, at, width, height, over)
    if (shape) outline(shape, axis, at, width, height, over)
  }

  /** Lay one row of attention over a row of labels. */
  private attend({ voxels, sides, start }: Block, axis: Axis, at: number, b: number, first: number, step: number, hu: Int16Array, labels: Uint8Array | null, over: Uint32Array): void {
    const { across, up, through } = PLANES[axis]
    const [depth, height] = [at - start[through], b - start[up]]
    if (depth < 0 || depth >= sides[through] || height < 0 || height >= sides[up]) return
    const strides = [1, sides[0], sides[0] * sides[1]] as const
    const line = depth * strides[through] + height * strides[up]
    const last = over.length - 1
    for (let x = 0; x < sides[across]; x++) {
      const value = voxels[line + x * strides[across]]!
      if (value === 0) continue
      const m = last - (x + start[across])
      const i = first - m * step
      if (hu[i]! > AIR_HU) over[m] = this.mixed[((labels ? labels[i]! : 0) << 8) | value]!
    }
  }

  /** Voxels beside one of another label, within the slice. */
  private drawEdges(labels: Uint8Array, across: number, up: number, start: number, width: number, height: number, over: Uint32Array): void {
    for (let row = 0, n = 0; row < height; row++) {
      const b = height - 1 - row
      for (let a = width - 1; a >= 0; a--, n++) {
        const i = start + a * across + b * up
        const label = labels[i]!
        if (label === 0) continue
        const inner = a > 0 && a < width - 1 && b > 0 && b < height - 1
        const same = inner && labels[i - across] === label && labels[i + across] === label && labels[i - up] === label && labels[i + up] === label
        if (!same) over[n] = this.edges[label]!
      }
    }
  }
}

export function pixel(r: number, g: number, b: number, alpha: number): number {
  return ((Math.round(alpha * 255) << 24) | (Math.round(b) << 16) | (Math.round(g) << 8) | Math.round(r)) >>> 0
}

/** Blue-white: seen on every organ's colour. */
const SHAPE = pixel(225, 240, 255, 1)

/** The voxels of a mask's slice beside one that is not in it. */
function outline({ voxels, sides, start }: Block, axis: Axis, at: number, width: number, height: number, over: Uint32Array): void {
  const { across, up, through } = PLANES[axis]
  const depth = at - start[through]
  if (depth < 0 || depth >= sides[through]) return
  const strides = [1, sides[0], sides[0] * sides[1]] as const
  const has = (a: number, b: number): boolean =>
    a >= 0 && b >= 0 && a < sides[across] && b < sides[up] && voxels[a * strides[across] + b * strides[up] + depth * strides[through]] !== 0
  for (let b = 0; b < sides[up]; b++) {
    for (let a = 0; a < sides[across]; a++) {
      if (!has(a, b) || (has(a - 1, b) && has(a + 1, b) && has(a, b - 1) && has(a, b + 1))) continue
      over[width - 1 - a - start[across] + width * (height - 1 - b - start[up])] = SHAPE
    }
  }
}
