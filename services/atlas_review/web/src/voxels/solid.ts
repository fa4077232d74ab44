/** A part of a volume as a mask of its own, on which the operations of this folder work. */

export type Triple = readonly [number, number, number]

/** First and last voxel, both included. */
export interface Box {
  low: [number, number, number]
  high: [number, number, number]
}

/** Zeros and ones in RAS+ order, x fastest; `spacing` in mm. */
export interface Solid {
  mask: Uint8Array
  sides: Triple
  spacing: Triple
}

/** `box` and so many millimetres around it (one voxel at least), as far as the volume goes. */
export function around({ low, high }: Box, mm: number, spacing: Triple, dims: Triple): Box {
  const more = spacing.map((side) => Math.ceil(mm / side) + 1)
  return {
    low: low.map((at, n) => Math.max(at - more[n]!, 0)) as Box['low'],
    high: high.map((at, n) => Math.min(at + more[n]!, dims[n]! - 1)) as Box['high'],
  }
}

/** Calls `row` with the first voxel of each row of a box in the volume and in the box itself, and the row's length. */
export function eachRow({ low, high }: Box, dims: Triple, row: (inVolume: number, inBox: number, length: number) => void): void {
  const length = high[0] - low[0] + 1
  let inBox = 0
  for (let z = low[2]; z <= high[2]; z++) {
    for (let y = low[1]; y <= high[1]; y++, inBox += length) row(low[0] + dims[0] * (y + dims[1] * z), inBox, length)
  }
}

export function sidesOf({ low, high }: Box): [number, number, number] {
  return low.map((at, n) => high[n]! - at + 1) as [number, number, number]
}
