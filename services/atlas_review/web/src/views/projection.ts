/** Maximum intensity projections: the CT through a slab around a slice. */

import type { Axis } from '../voxels/edits'
import { inTurns, type Turns } from '../voxels/turns'
import type { Vec3 } from './grid'
import { PLANES } from './planes'

/** Thickness in mm that stands for the whole volume. */
export const WHOLE_MM = 100_000
/** Thickness of a slab; 0: the slice alone. */
export const SLABS_MM = [0, 5, 10, 20, 40, WHOLE_MM] as const

/** First and last slice of a slab of so many millimetres around a slice, both included. */
export function slabAround(at: number, mm: number, spacing: number, slices: number): [number, number] {
  const more = Math.floor(mm / 2 / spacing)
  return [Math.max(at - more, 0), Math.min(at + more, slices - 1)]
}

/** The highest values through slices `low` to `high`, row by row (`across` fastest); null: `dropped` meanwhile. */
export function* project(hu: Int16Array, dims: Vec3, axis: Axis, low: number, high: number, dropped: () => boolean): Turns<Int16Array | null> {
  const { across, up, through } = PLANES[axis]
  const result = new Int16Array(dims[across] * dims[up]).fill(-32768)
  const strides: Vec3 = [0, 0, 0]
  strides[across] = 1
  strides[up] = dims[across]
  const [first, last]: [Vec3, Vec3] = [[0, 0, 0], dims.map((size) => size - 1) as Vec3]
  first[through] = low
  last[through] = high
  for (let z = first[2]; z <= last[2]; z++) {
    for (let y = first[1]; y <= last[1]; y++) {
      const row = dims[0] * (y + dims[1] * z)
      for (let x = first[0], to = x * strides[0] + y * strides[1] + z * strides[2]; x <= last[0]; x++, to += strides[0]) {
        const value = hu[row + x]!
        if (value > result[to]!) result[to] = value
      }
    }
    yield
    if (dropped()) return null
  }
  return result
}

interface Slab {
  low: number
  high: number
  pixels: Int16Array | null
}

/** The projection that each view shows; a newer one replaces it once it is there. */
export class Projections {
  private readonly shown = new Map<Axis, Slab>()
  private readonly wanted = new Map<Axis, Slab>()

  constructor(private readonly onReady: () => void) {}

  clear(): void {
    this.shown.clear()
    this.wanted.clear()
  }

  /** The newest projection of a view, which may be of an older slab; null: none is there yet. */
  of(axis: Axis, hu: Int16Array, dims: Vec3, [low, high]: readonly [number, number]): Int16Array | null {
    const wanted = this.wanted.get(axis)
    if (wanted?.low !== low || wanted.high !== high) void this.make(axis, hu, dims, { low, high, pixels: null })
    return this.shown.get(axis)?.pixels ?? null
  }

  private async make(axis: Axis, hu: Int16Array, dims: Vec3, slab: Slab): Promise<void> {
    this.wanted.set(axis, slab)
    slab.pixels = await inTurns(project(hu, dims, axis, slab.low, slab.high, () => this.wanted.get(axis) !== slab))
    if (!slab.pixels || this.wanted.get(axis) !== slab) return
    this.shown.set(axis, slab)
    this.onReady()
  }
}
