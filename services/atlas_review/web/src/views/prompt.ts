/** What a person points at in the views: one prompt, while it is drawn and afterwards. */

import type { Axis } from '../voxels/edits'
import type { Vec3 } from './grid'
import type { Pane } from './panes'
import { PLANES } from './planes'

export const PROMPT_KINDS = ['point', 'scribble', 'box', 'lasso'] as const
export type PromptKind = (typeof PROMPT_KINDS)[number]

/** Voxels that a path has at most: what the server takes, less a few. */
const MAX_PATH = 4000
/** Inside green and whole, outside red and broken: two channels. */
const COLOURS = { inside: '#6fe08a', outside: '#ff7a6b' }
const POINT_PX = 5

/** Here is the organ, or (not `positive`) here it is not. */
export class Prompt {
  /** Of a box two corners; else the voxels that the pointer passed. */
  readonly path: Vec3[] = []

  constructor(
    readonly kind: PromptKind,
    readonly positive: boolean,
    readonly axis: Axis,
  ) {}

  to(voxel: Vec3): void {
    const last = this.path.at(-1)
    if (last?.every((at, n) => at === voxel[n])) return
    if (this.kind === 'point') this.path.length = 0
    if (this.kind === 'box') this.path.length = Math.min(this.path.length, 1)
    if (this.path.length < MAX_PATH) this.path.push([...voxel])
  }

  /** Whether it is one: a box has two corners, and a lasso goes around something. */
  get whole(): boolean {
    return this.path.length >= { point: 1, scribble: 1, box: 2, lasso: 3 }[this.kind]
  }

  private get outline(): Vec3[] {
    const [from, to] = [this.path[0]!, this.path.at(-1)!]
    if (this.kind !== 'box') return this.path
    const { across } = PLANES[this.axis]
    const [one, two]: [Vec3, Vec3] = [[...from], [...to]]
    one[across] = to[across]
    two[across] = from[across]
    return [from, one, to, two]
  }

  /** Draw it in a view of its slice. */
  draw(context: CanvasRenderingContext2D, pane: Pane, crosshair: Vec3, density: number): void {
    const first = this.path[0]
    const { through } = PLANES[pane.axis]
    if (!first || first[through] !== crosshair[through]) return
    if (this.kind !== 'point' && pane.axis !== this.axis) return
    const { left, top, width, height } = pane.box
    context.save()
    context.beginPath()
    context.rect(left, top, width, height)
    context.clip()
    for (const [colour, thick] of [['#000a', 4], [this.positive ? COLOURS.inside : COLOURS.outside, 2]] as const) {
      context.strokeStyle = colour
      context.lineWidth = thick * density
      context.setLineDash(this.positive || this.kind === 'point' ? [] : [4 * density, 3 * density])
      context.beginPath()
      if (this.kind === 'point') this.sign(context, pane.place(first), POINT_PX * density)
      else for (const corner of this.outline) context.lineTo(...pane.place(corner))
      if (this.kind === 'box' || this.kind === 'lasso') context.closePath()
      context.stroke()
    }
    context.restore()
  }

  /** A plus or a minus. */
  private sign(context: CanvasRenderingContext2D, [x, y]: [number, number], half: number): void {
    context.moveTo(x - half, y)
    context.lineTo(x + half, y)
    if (!this.positive) return
    context.moveTo(x, y - half)
    context.lineTo(x, y + half)
  }
}
