/** Where each view lies on the screen, and which voxel lies under a point of it. */

import type { Axis } from '../voxels/edits'
import type { Vec3 } from './grid'
import { PLANES } from './planes'

export interface Box {
  left: number
  top: number
  width: number
  height: number
}

/** The axial view is the main one, the other two stand beside it. [left, top, width, height] */
const ALL_VIEWS: readonly (readonly [Axis, number, number, number, number])[] = [
  ['axial', 0, 0, 0.62, 1],
  ['coronal', 0.62, 0, 0.38, 0.5],
  ['sagittal', 0.62, 0.5, 0.38, 0.5],
]
const GAP = 2
export const MAX_ZOOM = 16

/** What all views share: how far they are zoomed in, and the point of the patient in their middle. */
export interface Camera {
  zoom: number
  /** Fractional voxel; the middle of voxel n is n. */
  centre: Vec3
}

/** One view of a volume in a box of the screen. Lengths in pixels of the canvas. */
export class Pane {
  /** Pixels per millimetre. */
  readonly scale: number

  constructor(
    readonly axis: Axis,
    readonly box: Box,
    private readonly dims: Vec3,
    private readonly spacing: Vec3,
    private readonly camera: Camera,
  ) {
    const { across, up } = PLANES[axis]
    this.scale = camera.zoom * Math.min(box.width / (dims[across] * spacing[across]), box.height / (dims[up] * spacing[up]))
  }

  holds(x: number, y: number): boolean {
    const { left, top, width, height } = this.box
    return x >= left && x < left + width && y >= top && y < top + height
  }

  /** Pixels of one voxel, across and up. */
  get pixels(): [number, number] {
    const { across, up } = PLANES[this.axis]
    return [this.spacing[across] * this.scale, this.spacing[up] * this.scale]
  }

  /** Where the middle of a voxel is on the screen; the axes of the patient run to the left and up. */
  place(voxel: Readonly<Vec3>): [number, number] {
    const { across, up } = PLANES[this.axis]
    const [px, py] = this.pixels
    return [
      this.box.left + this.box.width / 2 - (voxel[across] - this.camera.centre[across]) * px,
      this.box.top + this.box.height / 2 - (voxel[up] - this.camera.centre[up]) * py,
    ]
  }

  /** The fractional voxel under a point, on the slice of `through`. */
  at(x: number, y: number, through: Readonly<Vec3>): Vec3 {
    const { across, up } = PLANES[this.axis]
    const [px, py] = this.pixels
    const found: Vec3 = [...through]
    found[across] = this.camera.centre[across] - (x - this.box.left - this.box.width / 2) / px
    found[up] = this.camera.centre[up] - (y - this.box.top - this.box.height / 2) / py
    return found
  }

  /** The whole slice on the screen. */
  get picture(): Box {
    const { across, up } = PLANES[this.axis]
    const [px, py] = this.pixels
    const far: Vec3 = [0, 0, 0]
    far[across] = this.dims[across] - 0.5
    far[up] = this.dims[up] - 0.5
    const [left, top] = this.place(far)
    return { left, top, width: this.dims[across] * px, height: this.dims[up] * py }
  }
}

export function panesOf(view: Axis | 'all', width: number, height: number, dims: Vec3, spacing: Vec3, camera: Camera): Pane[] {
  if (view !== 'all') return [new Pane(view, { left: 0, top: 0, width, height }, dims, spacing, camera)]
  return ALL_VIEWS.map(([axis, left, top, wide, high]) => {
    const box = { left: left * width + GAP, top: top * height + GAP, width: wide * width - 2 * GAP, height: high * height - 2 * GAP }
    return new Pane(axis, box, dims, spacing, camera)
  })
}

/** The camera that is `factor` times closer while `fixed` stays where it is on the screen. */
export function zoomed(camera: Camera, factor: number, fixed: Readonly<Vec3>, dims: Readonly<Vec3>): Camera {
  const zoom = Math.min(Math.max(camera.zoom * factor, 1), MAX_ZOOM)
  if (zoom === 1) return { zoom, centre: middle(dims) }
  const centre = fixed.map((at, n) => at - ((at - camera.centre[n]!) * camera.zoom) / zoom) as Vec3
  return { zoom, centre }
}

export function middle(dims: Readonly<Vec3>): Vec3 {
  return dims.map((size) => (size - 1) / 2) as Vec3
}
