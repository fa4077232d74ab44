/** Exact Euclidean distances on voxels that need not be cubes (Felzenszwalb and Huttenlocher 2012). */

import type { Solid } from './solid'
import type { Turns } from './turns'

const FAR = 1e20
/** Lines after which other work may have its turn. */
const LINES = 2000

/** Squared distance in mm² of every voxel to the nearest one where the mask is `value`. */
export function* squaredDistance({ mask, sides, spacing }: Solid, value: 0 | 1): Turns<Float64Array> {
  const squared = Float64Array.from(mask, (one) => (one === value ? 0 : FAR))
  yield
  const strides = [1, sides[0], sides[0] * sides[1]] as const
  for (const axis of [0, 1, 2] as const) {
    const [one, two] = ([0, 1, 2] as const).filter((other) => other !== axis) as [0 | 1, 1 | 2]
    const line = new Line(sides[axis], spacing[axis] ** 2)
    for (let b = 0; b < sides[two]; b++) {
      for (let a = 0; a < sides[one]; a++) {
        line.transform(squared, a * strides[one] + b * strides[two], strides[axis])
        if ((a + b * sides[one]) % LINES === 0) yield
      }
    }
  }
  return squared
}

/** One line of voxels: the lower envelope of a parabola over each of them. */
class Line {
  private readonly values: Float64Array
  private readonly feet: Int32Array
  private readonly starts: Float64Array

  constructor(
    private readonly length: number,
    private readonly side2: number,
  ) {
    this.values = new Float64Array(length)
    this.feet = new Int32Array(length)
    this.starts = new Float64Array(length + 1)
  }

  transform(squared: Float64Array, first: number, stride: number): void {
    const { values, feet, starts, length, side2 } = this
    let last = -1
    for (let q = 0, i = first; q < length; q++, i += stride) {
      const height = (values[q] = squared[i]!)
      if (height >= FAR) continue
      let start = -Infinity
      while (last >= 0) {
        const v = feet[last]!
        start = (height - values[v]! + side2 * (q * q - v * v)) / (2 * side2 * (q - v))
        if (start > starts[last]!) break
        last--
        start = -Infinity
      }
      last++
      feet[last] = q
      starts[last] = start
    }
    if (last < 0) return // nothing of it is near anything
    starts[last + 1] = Infinity
    for (let q = 0, i = first, k = 0; q < length; q++, i += stride) {
      while (starts[k + 1]! < q) k++
      const v = feet[k]!
      squared[i] = values[v]! + side2 * (q - v) ** 2
    }
  }
}
