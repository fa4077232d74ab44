/** An outline that follows edges on one slice: it runs from click to click, and to the pointer. */

import type { Axis } from '../voxels/edits'
import { cheapestWays, wayTo } from '../voxels/live-wire'
import type { Vec3 } from './grid'
import { PLANES } from './planes'

/** How far one click may lie from the next, in mm across and up. */
const REACH_MM = 80
/** A click within so many voxels of the first one closes the outline. */
const CLOSE_VOXELS = 3

/** A part of a slice around a click, and the cheapest ways in it. */
interface Reach {
  low: Vec3
  high: Vec3
  before: Int32Array
}

export class Wire {
  /** The ways to each click, the first of which is a way of one voxel. */
  private ways: Vec3[][] = []
  private reach: Reach | null = null
  private ahead: Vec3[] = []

  constructor(
    readonly axis: Axis,
    readonly slice: number,
    private readonly dims: Vec3,
    private readonly spacing: Vec3,
    private readonly greyAt: (voxel: Vec3) => number,
  ) {}

  /** The outline as it is, and on to the pointer. */
  get way(): Vec3[] {
    return [...this.ways.flat(), ...this.ahead]
  }

  /** The whole outline and back to its beginning; null: it is no outline yet. */
  get closed(): Vec3[] | null {
    const first = this.ways[0]?.[0]
    return first && this.ways.length > 1 ? [...this.ways.flat(), ...this.to(first)] : null
  }

  /** Whether a click there ends the outline. */
  endsAt(voxel: Vec3): boolean {
    const first = this.ways[0]?.[0]
    return this.ways.length > 2 && first !== undefined && first.every((at, n) => Math.abs(at - voxel[n]!) <= CLOSE_VOXELS)
  }

  click(voxel: Vec3): void {
    this.ways.push(this.reach ? this.to(voxel) : [voxel])
    this.start()
  }

  /** Take the last click back; false: none is left. */
  back(): boolean {
    this.ways.pop()
    this.start()
    return this.ways.length > 0
  }

  follow(voxel: Vec3): void {
    this.ahead = this.to(voxel)
  }

  /** Compute what can be reached from the last click. */
  private start(): void {
    this.ahead = []
    const from = this.ways.at(-1)?.at(-1)
    if (!from) return
    const { across, up } = PLANES[this.axis]
    const [low, high]: [Vec3, Vec3] = [[...from], [...from]]
    for (const n of [across, up] as const) {
      const more = Math.ceil(REACH_MM / this.spacing[n])
      low[n] = Math.max(from[n] - more, 0)
      high[n] = Math.min(from[n] + more, this.dims[n] - 1)
    }
    const [width, height] = [high[across] - low[across] + 1, high[up] - low[up] + 1]
    const grey = new Float32Array(width * height)
    const voxel: Vec3 = [...from]
    for (let n = 0; n < grey.length; n++) {
      voxel[across] = low[across] + (n % width)
      voxel[up] = low[up] + Math.floor(n / width)
      grey[n] = this.greyAt(voxel)
    }
    const start = from[across] - low[across] + width * (from[up] - low[up])
    this.reach = { low, high, before: cheapestWays({ grey, width, height, spacing: [this.spacing[across], this.spacing[up]] }, start) }
  }

  /** The way from the last click, as far as that reaches; without that click. */
  private to(voxel: Vec3): Vec3[] {
    if (!this.reach) return []
    const { low, high, before } = this.reach
    const { across, up } = PLANES[this.axis]
    const width = high[across] - low[across] + 1
    const [x, y] = [across, up].map((n) => Math.min(Math.max(voxel[n]!, low[n]!), high[n]!) - low[n]!) as [number, number]
    return wayTo(before, x + width * y)
      .slice(1)
      .map((at) => {
        const place: Vec3 = [...low]
        place[across] += at % width
        place[up] += Math.floor(at / width)
        return place
      })
  }
}
