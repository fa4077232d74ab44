/** Voxel grids: how a file's axes lie in the patient, and a volume brought into the order of all drawing (RAS+). */

export type Vec3 = [number, number, number]
export type Affine = readonly (readonly number[])[]
export type Axis3 = 0 | 1 | 2

/** Any array of voxel values. */
export type Voxels = Int8Array | Uint8Array | Int16Array | Uint16Array | Int32Array | Uint32Array | Float32Array | Float64Array

/** Rows of the inverse of a 4×4 affine (its first three rows). */
export function invertAffine(affine: Affine): number[][] {
  const [[a, b, c, x], [d, e, f, y], [g, i, j, z]] = affine as unknown as [number, number, number, number][] as [
    [number, number, number, number],
    [number, number, number, number],
    [number, number, number, number],
  ]
  const determinant = a * (e * j - f * i) - b * (d * j - f * g) + c * (d * i - e * g)
  const rows = [
    [e * j - f * i, c * i - b * j, b * f - c * e],
    [f * g - d * j, a * j - c * g, c * d - a * f],
    [d * i - e * g, b * g - a * i, a * e - b * d],
  ].map((row) => row.map((value) => value / determinant))
  return rows.map((row) => [...row, -(row[0]! * x + row[1]! * y + row[2]! * z)])
}

export function transform(rows: Affine, point: readonly number[]): Vec3 {
  return [0, 1, 2].map((r) => rows[r]![0]! * point[0]! + rows[r]![1]! * point[1]! + rows[r]![2]! * point[2]! + rows[r]![3]!) as Vec3
}

/**
 * A file's grid and the same voxels in the order nearest to right, anterior, superior: axes are swapped and
 * reversed, nothing is resampled. Index of voxel (x, y, z): `x + nx * (y + ny * z)`.
 */
export class Grid {
  /** Sizes and voxel sides (mm) along right, anterior, superior. */
  readonly dims: Vec3
  readonly spacing: Vec3
  /** File axis that runs along right, anterior, superior, and whether it runs the other way. */
  private readonly axes: [Axis3, Axis3, Axis3]
  private readonly reversed: [boolean, boolean, boolean]
  private readonly inverse: number[][]

  constructor(
    readonly shape: Readonly<Vec3>,
    readonly affine: Affine,
  ) {
    this.inverse = invertAffine(affine)
    const side = (axis: number): number => Math.hypot(affine[0]![axis]!, affine[1]![axis]!, affine[2]![axis]!)
    this.axes = nearestAxes(affine, side)
    this.reversed = this.axes.map((axis, world) => affine[world]![axis]! < 0) as [boolean, boolean, boolean]
    this.dims = this.axes.map((axis) => shape[axis]) as Vec3
    this.spacing = this.axes.map(side) as Vec3
  }

  /** Whether the file lies in RAS+ order itself. */
  get inOrder(): boolean {
    return this.axes.every((axis, world) => axis === world) && !this.reversed.includes(true)
  }

  get voxels(): number {
    return this.shape[0] * this.shape[1] * this.shape[2]
  }

  /** Voxel of the file at a (possibly fractional) voxel in RAS+ order. */
  toFile(xyz: readonly number[]): Vec3 {
    const ijk: Vec3 = [0, 0, 0]
    this.axes.forEach((axis, world) => {
      ijk[axis] = this.reversed[world] ? this.dims[world]! - 1 - xyz[world]! : xyz[world]!
    })
    return ijk
  }

  fromFile(ijk: readonly number[]): Vec3 {
    return this.axes.map((axis, world) => (this.reversed[world] ? this.dims[world]! - 1 - ijk[axis]! : ijk[axis]!)) as Vec3
  }

  toMm(xyz: readonly number[]): Vec3 {
    return transform(this.affine, this.toFile(xyz))
  }

  fromMm(mm: readonly number[]): Vec3 {
    return this.fromFile(transform(this.inverse, mm))
  }

  /** Voxel of this file, unrounded, at the first voxel of another file. */
  origin(other: Affine): Vec3 {
    return transform(this.inverse, [0, 1, 2].map((row) => other[row]![3]!))
  }

  /** A block of the file in file order (its first voxel at `start`), brought into RAS+ order. */
  toRas<T extends Voxels>(block: T, sides: Readonly<Vec3> = this.shape): T {
    if (this.inOrder) return block
    const ras = ofSameKind(block)
    this.move(block, ras, sides, 0, sides[2], true)
    return ras
  }

  /** Bring slices `from` to `to` (not included) of the file's last axis into their places in `ras`, the whole grid in RAS+ order. */
  placeSlices<T extends Voxels>(file: T, from: number, to: number, ras: T): void {
    this.move(file, ras, this.shape, from, to, true)
  }

  /** The inverse of `toRas` for the whole grid. */
  toFileOrder<T extends Voxels>(map: T): T {
    if (this.inOrder) return map
    const file = ofSameKind(map)
    this.move(file, map, this.shape, 0, this.shape[2], false)
    return file
  }

  /** Copy slices `from` to `to` of a block, between its order in the file and RAS+ order. */
  private move<T extends Voxels>(file: T, ras: T, sides: Readonly<Vec3>, from: number, to: number, toRas: boolean): void {
    const dims = this.axes.map((axis) => sides[axis]) as Vec3
    const strides = [1, dims[0], dims[0] * dims[1]] as const
    const steps: Vec3 = [0, 0, 0]
    let start = 0
    this.axes.forEach((axis, world) => {
      const stride = strides[world]!
      steps[axis] = this.reversed[world] ? -stride : stride
      if (this.reversed[world]) start += stride * (dims[world]! - 1)
    })
    let at = from * sides[0] * sides[1]
    for (let k = from; k < to; k++) {
      for (let j = 0; j < sides[1]; j++) {
        let place = start + j * steps[1] + k * steps[2]
        for (let i = 0; i < sides[0]; i++, at++, place += steps[0]) {
          if (toRas) ras[place] = file[at]!
          else file[at] = ras[place]!
        }
      }
    }
  }
}

function ofSameKind<T extends Voxels>(voxels: T): T {
  return new (voxels.constructor as new (length: number) => T)(voxels.length)
}

/** The permutation of file axes that lies nearest to the world's: the largest sum of direction cosines. */
function nearestAxes(affine: Affine, side: (axis: number) => number): [Axis3, Axis3, Axis3] {
  const orders: [Axis3, Axis3, Axis3][] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
  const fit = (order: readonly Axis3[]): number =>
    order.reduce<number>((sum, axis, world) => sum + Math.abs(affine[world]![axis]!) / side(axis), 0)
  return orders.reduce((best, order) => (fit(order) > fit(best) + 1e-9 ? order : best))
}
