/** Growing, shrinking and smoothing an organ, in millimetres. Each returns a mask of the same sides. */

import { squaredDistance } from './distance'
import type { Solid } from './solid'
import type { Turns } from './turns'

/** Squared distances are sums of products: equal ones may differ by so much. */
const EPSILON = 1e-9

/** And every voxel within `mm` of it. */
export function* grow(solid: Solid, mm: number): Turns<Uint8Array> {
  const squared = yield* squaredDistance(solid, 1)
  return Uint8Array.from(squared, (d) => (d <= mm * mm + EPSILON ? 1 : 0))
}

/** Without every voxel within `mm` of what lies around it. */
export function* shrink(solid: Solid, mm: number): Turns<Uint8Array> {
  const squared = yield* squaredDistance(solid, 0)
  return Uint8Array.from(squared, (d) => (d > mm * mm + EPSILON ? 1 : 0))
}

/** Standard deviations at which a Gaussian is cut off. */
export const CUT_OFF = 3
const LINES = 2000

/** What is more than half inside under a Gaussian of `mm` standard deviation; the border of the volume goes on. */
export function* smooth({ mask, sides, spacing }: Solid, mm: number): Turns<Uint8Array> {
  const values = Float64Array.from(mask)
  yield
  const strides = [1, sides[0], sides[0] * sides[1]] as const
  for (const axis of [0, 1, 2] as const) {
    const weights = gaussian(mm / spacing[axis])
    const reach = (weights.length - 1) / 2
    const length = sides[axis]
    const line = new Float64Array(length + 2 * reach)
    const [one, two] = ([0, 1, 2] as const).filter((other) => other !== axis) as [0 | 1, 1 | 2]
    for (let b = 0; b < sides[two]; b++) {
      for (let a = 0; a < sides[one]; a++) {
        const first = a * strides[one] + b * strides[two]
        if ((a + b * sides[one]) % LINES === 0) yield
        for (let n = 0; n < line.length; n++) line[n] = values[first + strides[axis] * Math.min(Math.max(n - reach, 0), length - 1)]!
        for (let n = 0; n < length; n++) {
          let sum = 0
          for (let k = 0; k < weights.length; k++) sum += weights[k]! * line[n + k]!
          values[first + strides[axis] * n] = sum
        }
      }
    }
  }
  return Uint8Array.from(values, (value) => (value > 0.5 ? 1 : 0))
}

function gaussian(sigma: number): Float64Array {
  const reach = Math.floor(CUT_OFF * sigma + 0.5)
  const weights = Float64Array.from({ length: 2 * reach + 1 }, (_, n) => Math.exp(-0.5 * ((n - reach) / sigma) ** 2))
  const sum = weights.reduce((total, one) => total + one, 0)
  return weights.map((one) => one / sum)
}
