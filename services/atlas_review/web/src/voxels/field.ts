/** One label of a map as a coarser field of shares, from which a surface is made. */

import { around, sidesOf, type Box, type Triple } from './solid'
import type { Turns } from './turns'

/** The longest side of a field, about. */
const CELLS = 96

/** Shares 0 to 1 of a label in cells of some voxels, x fastest; zero on all sides. Places in mm of the volume. */
export interface Field {
  shares: Float32Array
  sides: [number, number, number]
  /** Between the middles of cells, and of the first cell. */
  spacing: [number, number, number]
  origin: [number, number, number]
}

export function* shareField(map: Uint8Array, dims: Triple, spacing: Triple, label: number, extent: Box): Turns<Field> {
  const box = around(extent, 0, spacing, dims)
  const longest = Math.max(...sidesOf(box).map((side, n) => side * spacing[n]!))
  const step = spacing.map((side) => Math.max(Math.round(longest / CELLS / side), 1)) as unknown as Triple
  const sides = sidesOf(box).map((side, n) => Math.ceil(side / step[n]!) + 2) as Field['sides']
  const shares = new Float32Array(sides[0] * sides[1] * sides[2])
  const one = 1 / (step[0] * step[1] * step[2])
  for (let z = box.low[2]; z <= box.high[2]; z++) {
    for (let y = box.low[1]; y <= box.high[1]; y++) {
      const row = dims[0] * (y + dims[1] * z)
      const cells = sides[0] * (1 + Math.floor((y - box.low[1]) / step[1]) + sides[1] * (1 + Math.floor((z - box.low[2]) / step[2])))
      for (let x = box.low[0]; x <= box.high[0]; x++) {
        if (map[row + x] === label) shares[cells + 1 + Math.floor((x - box.low[0]) / step[0])]! += one
      }
    }
    yield
  }
  return {
    shares,
    sides,
    spacing: step.map((cells, n) => cells * spacing[n]!) as Field['spacing'],
    origin: box.low.map((at, n) => (at - (step[n]! + 1) / 2) * spacing[n]!) as Field['origin'],
  }
}
