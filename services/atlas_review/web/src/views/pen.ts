/** Strokes of the pen on one slice: which voxels they change, and what those were before. */

import type { Axis, Edit } from '../edits'
import type { Vec3 } from './grid'
import { PLANES } from './planes'

/** Collects the voxels that one action changes, each with its first value. */
export class Changes {
  private readonly before = new Map<number, number>()

  constructor(private readonly map: Uint8Array) {}

  set(index: number, value: number): void {
    const old = this.map[index]!
    if (old === value) return
    if (!this.before.has(index)) this.before.set(index, old)
    this.map[index] = value
  }

  /** The edit as a whole, or null if nothing differs in the end. */
  get edit(): Edit | null {
    const index = Uint32Array.from([...this.before.keys()].filter((i) => this.map[i] !== this.before.get(i))).sort()
    if (index.length === 0) return null
    const [before, after] = [new Uint8Array(index.length), new Uint8Array(index.length)]
    index.forEach((i, n) => {
      before[n] = this.before.get(i)!
      after[n] = this.map[i]!
    })
    return { index, before, after }
  }
}

export interface Nib {
  /** Diameter in voxels, odd. */
  size: number
  value: number
  may: (label: number) => boolean
}

/** One movement of the pen with its button held, on one slice of one view. */
export class Stroke {
  private readonly changes: Changes
  private readonly corners: [number, number][] = []
  private readonly strides: readonly [number, number, number]

  constructor(
    private readonly map: Uint8Array,
    private readonly dims: Vec3,
    readonly axis: Axis,
    readonly slice: number,
    private readonly nib: Nib,
  ) {
    this.changes = new Changes(map)
    this.strides = [1, dims[0], dims[0] * dims[1]]
  }

  /** Go on to a voxel: every voxel on the straight way there is touched. */
  to(voxel: Readonly<Vec3>): void {
    const { across, up } = PLANES[this.axis]
    const end: [number, number] = [voxel[across], voxel[up]]
    const start = this.corners.at(-1) ?? end
    const steps = Math.max(Math.abs(end[0] - start[0]), Math.abs(end[1] - start[1]), 1)
    for (let n = 0; n <= steps; n++) {
      this.stamp(Math.round(start[0] + ((end[0] - start[0]) * n) / steps), Math.round(start[1] + ((end[1] - start[1]) * n) / steps))
    }
    this.corners.push(end)
  }

  private stamp(a: number, b: number): void {
    const reach = (this.nib.size - 1) / 2
    const radius2 = (this.nib.size / 2) ** 2
    for (let y = -reach; y <= reach; y++) {
      for (let x = -reach; x <= reach; x++) if (x * x + y * y <= radius2) this.paint(a + x, b + y)
    }
  }

  private paint(a: number, b: number): void {
    const { across, up, through } = PLANES[this.axis]
    if (a < 0 || b < 0 || a >= this.dims[across] || b >= this.dims[up]) return
    const index = a * this.strides[across] + b * this.strides[up] + this.slice * this.strides[through]
    if (this.nib.may(this.map[index]!)) this.changes.set(index, this.nib.value)
  }

  /** Close the way of the pen and take all that lies inside (even-odd, at the voxels' middles). */
  fill(): void {
    const first = this.corners[0]
    if (!first) return
    const { across, up } = PLANES[this.axis]
    const inside: [number, number][] = []
    const rows = this.corners.map(([, b]) => b)
    for (let b = Math.min(...rows); b <= Math.max(...rows); b++) {
      const crossings = this.crossings(b)
      for (let n = 0; n + 1 < crossings.length; n += 2) {
        for (let a = Math.ceil(crossings[n]!); a <= crossings[n + 1]!; a++) inside.push([a, b])
      }
    }
    const closing: Vec3 = [0, 0, 0]
    closing[across] = first[0]
    closing[up] = first[1]
    this.to(closing)
    for (const [a, b] of inside) this.paint(a, b)
  }

  private crossings(b: number): number[] {
    const found: number[] = []
    this.corners.forEach(([x1, y1], n) => {
      const [x0, y0] = this.corners[(n || this.corners.length) - 1]!
      if (y0 <= b !== y1 <= b) found.push(x0 + ((b - y0) * (x1 - x0)) / (y1 - y0))
    })
    return found.sort((one, two) => one - two)
  }

  get edit(): Edit | null {
    return this.changes.edit
  }
}
