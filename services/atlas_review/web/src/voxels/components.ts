/** Parts of an organ that hang together by faces of voxels, and what hangs together with a voxel. */

import type { Solid, Triple } from './solid'
import type { Turns } from './turns'

/** Voxels after which other work may have its turn. */
const VOXELS = 100_000

/** Marks with `mark` all voxels that hang together with `seed` among those that hold `value`; returns how many. */
function* flood(marks: Int32Array, sides: Triple, seed: number, value: number, mark: number): Turns<number> {
  const [nx, ny, nz] = sides
  const stack = [seed]
  marks[seed] = mark
  let count = 0
  const visit = (i: number): void => {
    if (marks[i] !== value) return
    marks[i] = mark
    stack.push(i)
  }
  while (stack.length > 0) {
    const i = stack.pop()!
    if (++count % VOXELS === 0) yield
    const x = i % nx
    const y = Math.floor(i / nx) % ny
    const z = Math.floor(i / (nx * ny))
    if (x > 0) visit(i - 1)
    if (x < nx - 1) visit(i + 1)
    if (y > 0) visit(i - nx)
    if (y < ny - 1) visit(i + nx)
    if (z > 0) visit(i - nx * ny)
    if (z < nz - 1) visit(i + nx * ny)
  }
  return count
}

const OPEN = -1

function* parts({ mask, sides }: Solid): Turns<{ marks: Int32Array; sizes: number[] }> {
  const marks = Int32Array.from(mask, (one) => (one ? OPEN : 0))
  const sizes: number[] = []
  for (let i = 0; i < marks.length; i++) {
    if (i % VOXELS === 0) yield
    if (marks[i] === OPEN) sizes.push(yield* flood(marks, sides, i, OPEN, sizes.length + 1))
  }
  return { marks, sizes }
}

/** Its largest part only; of equal ones, the first. */
export function* largest(solid: Solid): Turns<Uint8Array> {
  const { marks, sizes } = yield* parts(solid)
  const kept = sizes.indexOf(Math.max(...sizes)) + 1
  return Uint8Array.from(marks, (mark) => (mark !== 0 && mark === kept ? 1 : 0))
}

/** Without parts of fewer voxels. */
export function* withoutIslands(solid: Solid, voxels: number): Turns<Uint8Array> {
  const { marks, sizes } = yield* parts(solid)
  return Uint8Array.from(marks, (mark) => (mark !== 0 && sizes[mark - 1]! >= voxels ? 1 : 0))
}

/** And everything that it encloses; what reaches the border of the box lies outside. */
export function* withoutHoles({ mask, sides }: Solid): Turns<Uint8Array> {
  const [nx, ny, nz] = sides
  const marks = Int32Array.from(mask)
  for (let i = 0; i < marks.length; i++) {
    if (i % VOXELS === 0) yield
    if (marks[i] !== 0) continue
    const [x, y, z] = [i % nx, Math.floor(i / nx) % ny, Math.floor(i / (nx * ny))]
    const border = x === 0 || y === 0 || z === 0 || x === nx - 1 || y === ny - 1 || z === nz - 1
    if (border) yield* flood(marks, sides, i, 0, OPEN)
  }
  return Uint8Array.from(marks, (mark) => (mark === OPEN ? 0 : 1))
}

/** What hangs together with a voxel among those that may be taken. */
export function* connected({ mask, sides }: Solid, seed: number): Turns<Uint8Array> {
  const marks = Int32Array.from(mask)
  if (mask[seed]) yield* flood(marks, sides, seed, 1, 2)
  return Uint8Array.from(marks, (mark) => (mark === 2 ? 1 : 0))
}
