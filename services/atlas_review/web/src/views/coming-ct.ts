/** A CT that is still arriving, in the order of all drawing (RAS+): air where nothing is there yet. */

import { Grid, type Affine, type Vec3 } from './grid'
import { holdsHounsfield, type Nifti } from './nifti'
import { middle } from './panes'

const AIR_HU = -1024

export class ComingCt {
  readonly grid: Grid
  readonly hu: Int16Array
  private readonly file: Int16Array
  private placed = 0
  private shown = false

  /** Null for files whose numbers are not Hounsfield units: they are shown once they are converted. */
  static of(volume: Nifti, slices: number, affine: Affine): ComingCt | null {
    return holdsHounsfield(volume) ? new ComingCt(volume, slices, affine) : null
  }

  private constructor(volume: Nifti, slices: number, affine: Affine) {
    this.grid = new Grid(volume.shape, affine)
    this.file = volume.voxels as Int16Array
    const slice = volume.shape[0] * volume.shape[1]
    // Of the slice after those that are whole, a part is there already.
    this.hu = this.grid.inOrder ? this.file.fill(AIR_HU, (slices + 1) * slice) : new Int16Array(this.file.length).fill(AIR_HU)
  }

  /** Take the first `slices` of the file; true once: when the middle of the patient is among them. */
  take(slices: number): boolean {
    if (!this.grid.inOrder) this.grid.placeSlices(this.file, this.placed, slices, this.hu)
    this.placed = slices
    const centre = middle(this.grid.dims).map(Math.round) as Vec3
    if (this.shown || this.grid.toFile(centre)[2] >= slices) return false
    return (this.shown = true)
  }
}
