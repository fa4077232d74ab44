/** Strokes of the pen: which voxels they change, and what those were before. */

import type { Axis, Edit } from '../voxels/edits'
import type { Vec3 } from './grid'
import { PLANES } from './planes'

/** Collects the voxels that one action changes, each with its first value. */
export class Changes {
  private readonly seen: Uint32Array
  private readonly places: number[] = []
  private readonly values: number[] = []

  constructor(private readonly map: Uint8Array) {
    this.seen = new Uint32Array((map.length >>> 5) + 1)
  }

  set(index: number, value: number): void {
    const old = this.map[index]!
    if (old === value) return
    const [word, bit] = [index >>> 5, 1 << (index & 31)]
    if ((this.seen[word]! & bit) === 0) {
      this.seen[word]! |= bit
      this.places.push(index)
      this.values.push(old)
    }
    this.map[index] = value
  }

  /** The edit as a whole, or null if nothing differs in the end. */
  get edit(): Edit | null {
    // Place and value in one number: typed arrays of numbers are sorted natively.
    const pairs = Float64Array.from(this.places, (place, n) => place * 256 + this.values[n]!).filter((pair) => this.map[Math.floor(pair / 256)] !== pair % 256)
    if (pairs.length === 0) return null
    pairs.sort()
    const index = Uint32Array.from(pairs, (pair) => Math.floor(pair / 256))
    return { index, before: Uint8Array.from(pairs, (pair) => pair % 256), after: Uint8Array.from(index, (i) => this.map[i]!) }
  }
}

export interface Nib {
  /** Diameter in mm; 0: one voxel. */
  size: number
  /** A ball, which also draws on the slices around; else a disc on one slice. */
  ball: boolean
  value: number
  may: (index: number) => boolean
}

/** One movement of the pen with its button held, on one slice of one view. */
export class Stroke {
  private readonly changes: Changes
  readonly corners: Vec3[] = []
  private readonly strides: readonly [number, number, number]

  constructor(
    map: Uint8Array,
    private readonly dims: Vec3,
    private readonly spacing: Vec3,
    readonly axis: Axis,
    readonly slice: number,
    private readonly nib: Nib,
    /** Nothing is changed before the end: the way is an outline. */
    private readonly dry = false,
  ) {
    this.changes = new Changes(map)
    this.strides = [1, dims[0], dims[0] * dims[1]]
  }

  /** Go on to a voxel: every voxel on the straight way there is touched, and those within the pen's radius of it. */
  to(voxel: Readonly<Vec3>): void {
    const end: Vec3 = [...voxel]
    end[PLANES[this.axis].through] = this.slice
    const start = this.corners.at(-1) ?? end
    this.corners.push(end)
    if (this.dry) return
    const steps = Math.max(...end.map((at, n) => Math.abs(at - start[n]!)), 1)
    for (let n = 0; n <= steps; n++) this.paint(this.index(start.map((at, k) => Math.round(at + ((end[k]! - at) * n) / steps)) as Vec3))
    if (this.nib.size > 0) this.sweep(start, end)
  }

  private index(voxel: Readonly<Vec3>): number {
    return voxel[0] + voxel[1] * this.strides[1] + voxel[2] * this.strides[2]
  }

  private paint(index: number): void {
    if (this.nib.may(index)) this.changes.set(index, this.nib.value)
  }

  /** Every voxel whose middle lies within the radius of the way from `start` to `end`. */
  private sweep(start: Vec3, end: Vec3): void {
    const { spacing, dims } = this
    const radius = this.nib.size / 2
    const { through } = PLANES[this.axis]
    const reach = spacing.map((side, n) => (n === through && !this.nib.ball ? 0 : Math.floor(radius / side)))
    const low = start.map((at, n) => Math.max(Math.min(at, end[n]!) - reach[n]!, 0)) as Vec3
    const high = start.map((at, n) => Math.min(Math.max(at, end[n]!) + reach[n]!, dims[n]! - 1)) as Vec3
    const way = start.map((at, n) => (end[n]! - at) * spacing[n]!) as Vec3
    const length2 = way[0] ** 2 + way[1] ** 2 + way[2] ** 2
    for (let z = low[2]; z <= high[2]; z++) {
      const dz = (z - start[2]) * spacing[2]
      for (let y = low[1]; y <= high[1]; y++) {
        const dy = (y - start[1]) * spacing[1]
        for (let x = low[0], i = this.index([x, y, z]); x <= high[0]; x++, i++) {
          const dx = (x - start[0]) * spacing[0]
          const along = length2 ? Math.min(Math.max((dx * way[0] + dy * way[1] + dz * way[2]) / length2, 0), 1) : 0
          const distance2 = (dx - along * way[0]) ** 2 + (dy - along * way[1]) ** 2 + (dz - along * way[2]) ** 2
          if (distance2 <= radius * radius) this.paint(i)
        }
      }
    }
  }

  /** Close the way of the pen and take all that lies inside. */
  fill(): void {
    const first = this.corners[0]
    if (!first) return
    const inside = this.inside()
    this.to(first)
    for (const i of inside) this.paint(i)
  }

  /** Change what lies inside the way, on all slices from `low` to `high`. */
  cut(low: number, high: number): void {
    const stride = this.strides[PLANES[this.axis].through]
    for (const i of this.inside()) {
      const column = i - this.slice * stride
      for (let slice = low; slice <= high; slice++) this.paint(column + slice * stride)
    }
  }

  /** Voxels inside the closed way (even-odd, at the voxels' middles), on the slice that it was drawn on. */
  private inside(): number[] {
    const { across, up } = PLANES[this.axis]
    const found: number[] = []
    const rows = this.corners.map((corner) => corner[up])
    const voxel: Vec3 = [...this.corners[0]!]
    for (voxel[up] = Math.min(...rows); voxel[up] <= Math.max(...rows); voxel[up]++) {
      const crossings = this.crossings(voxel[up], across, up)
      for (let n = 0; n + 1 < crossings.length; n += 2) {
        for (voxel[across] = Math.ceil(crossings[n]!); voxel[across] <= crossings[n + 1]!; voxel[across]++) found.push(this.index(voxel))
      }
    }
    return found
  }

  private crossings(b: number, across: 0 | 1 | 2, up: 0 | 1 | 2): number[] {
    const found: number[] = []
    this.corners.forEach((corner, n) => {
      const before = this.corners[(n || this.corners.length) - 1]!
      const [x0, y0, x1, y1] = [before[across], before[up], corner[across], corner[up]]
      if (y0 <= b !== y1 <= b) found.push(x0 + ((b - y0) * (x1 - x0)) / (y1 - y0))
    })
    return found.sort((one, two) => one - two)
  }

  get edit(): Edit | null {
    return this.changes.edit
  }
}
