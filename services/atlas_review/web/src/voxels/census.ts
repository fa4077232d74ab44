/** How many voxels every label has, and a box that holds them all, kept up with each edit. */

import type { Edit } from './edits'
import type { Box, Triple } from './solid'

const LABELS = 256

export class Census {
  readonly voxels = new Float64Array(LABELS)
  private readonly low = Array.from({ length: 3 }, () => new Int32Array(LABELS).fill(2 ** 31 - 1))
  private readonly high = Array.from({ length: 3 }, () => new Int32Array(LABELS).fill(-1))

  constructor(
    map: Uint8Array,
    private readonly dims: Triple,
  ) {
    const [nx, ny, nz] = dims
    for (let z = 0, i = 0; z < nz; z++) {
      for (let y = 0; y < ny; y++) {
        let last = 0
        for (let x = 0; x < nx; x++, i++) {
          const label = map[i]!
          if (label === 0) {
            last = 0
            continue
          }
          this.voxels[label]! += 1
          if (label !== last) this.reach(label, x, y, z)
          else if (x > this.high[0]![label]!) this.high[0]![label] = x
          last = label
        }
      }
    }
  }

  private reach(label: number, ...place: [number, number, number]): void {
    for (let n = 0; n < 3; n++) {
      const [low, high, at] = [this.low[n]!, this.high[n]!, place[n]!]
      if (at < low[label]!) low[label] = at
      if (at > high[label]!) high[label] = at
    }
  }

  note({ index, before, after }: Edit): void {
    const [nx, ny] = this.dims
    for (let n = 0; n < index.length; n++) {
      this.voxels[before[n]!]! -= 1
      this.voxels[after[n]!]! += 1
      const i = index[n]!
      if (after[n]) this.reach(after[n]!, i % nx, Math.floor(i / nx) % ny, Math.floor(i / (nx * ny)))
    }
  }

  /** A box that holds the label; it may be larger than needed. null: no voxel ever had it. */
  box(label: number): Box | null {
    if (this.high[0]![label]! < 0) return null
    const corner = (of: Int32Array[]): Box['low'] => of.map((one) => one[label]!) as Box['low']
    return { low: corner(this.low), high: corner(this.high) }
  }
}
