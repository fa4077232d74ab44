/** NIfTI files as they stream in, and label maps as NIfTI files. */

import { NIFTI1, readHeader } from 'nifti-reader-js'
import type { Affine, Vec3, Voxels } from './grid'

export interface Nifti {
  shape: Vec3
  affine: Affine
  /** As stored, in the file's own order. */
  voxels: Voxels
  slope: number
  intercept: number
}

const HEADER_BYTES = 352
type VoxelsOf = new (buffer: ArrayBuffer, offset: number, length: number) => Voxels
const TYPES: Record<number, VoxelsOf> = {
  [NIFTI1.TYPE_UINT8]: Uint8Array,
  [NIFTI1.TYPE_INT8]: Int8Array,
  [NIFTI1.TYPE_INT16]: Int16Array,
  [NIFTI1.TYPE_UINT16]: Uint16Array,
  [NIFTI1.TYPE_INT32]: Int32Array,
  [NIFTI1.TYPE_UINT32]: Uint32Array,
  [NIFTI1.TYPE_FLOAT32]: Float32Array,
  [NIFTI1.TYPE_FLOAT64]: Float64Array,
}

/** Hears of a file that is still arriving: the volume that it becomes, and how many slices of the last axis are whole. */
export type OnSlices = (volume: Nifti, slices: number) => void

/**
 * Read a `.nii.gz` while it arrives: it is inflated into the one buffer that holds its voxels.
 *
 * `onSlices` is told whenever more slices are whole, if that buffer can be read as it is.
 */
export async function readNifti(compressed: ReadableStream<Uint8Array<ArrayBuffer>>, onSlices?: OnSlices): Promise<Nifti> {
  const reader = compressed.pipeThrough(new DecompressionStream('gzip')).getReader()
  let head: Uint8Array = new Uint8Array(0)
  let whole: Uint8Array<ArrayBuffer> | null = null
  let header: ReturnType<typeof readHeader> | null = null
  let length = 0
  let growing: Nifti | null = null
  let slices = 0
  for (;;) {
    const { done, value } = await reader.read()
    if (done) break
    if (whole) {
      whole.set(value.subarray(0, whole.length - length), length)
      length += value.length
    } else {
      head = joined(head, value)
      if (head.length < HEADER_BYTES) continue
      header = readHeader(head.slice(0, HEADER_BYTES).buffer)
      whole = new Uint8Array(Math.max(bytesIn(header), head.length))
      whole.set(head)
      length = head.length
      if (onSlices && aligned(header)) growing = parsed(header, whole)
    }
    const there = growing ? slicesIn(header!, length) : 0
    if (there > slices) onSlices!(growing!, (slices = there))
  }
  if (!header || !whole || length < bytesIn(header)) throw new Error('The volume is cut off: its file is shorter than its header says')
  return growing ?? parsed(header, whole)
}

function joined(one: Uint8Array, two: Uint8Array): Uint8Array {
  const both = new Uint8Array(one.length + two.length)
  both.set(one)
  both.set(two, one.length)
  return both
}

type Header = ReturnType<typeof readHeader>

function voxelsIn(header: Header): number {
  return header.dims[1]! * header.dims[2]! * header.dims[3]!
}

function bytesIn(header: Header): number {
  return header.vox_offset + (voxelsIn(header) * header.numBitsPerVoxel) / 8
}

/** Slices of the last axis that the first `length` bytes hold. */
function slicesIn(header: Header, length: number): number {
  const slice = (header.dims[1]! * header.dims[2]! * header.numBitsPerVoxel) / 8
  return Math.min(Math.floor(Math.max(length - header.vox_offset, 0) / slice), header.dims[3]!)
}

/** Whether the voxels can be read where they lie in the file. */
function aligned(header: Header): boolean {
  return header.vox_offset % (header.numBitsPerVoxel / 8) === 0
}

function parsed(header: Header, bytes: Uint8Array<ArrayBuffer>): Nifti {
  const type = TYPES[header.datatypeCode]
  if (!type || !header.littleEndian) throw new Error(`Volumes of NIfTI data type ${header.datatypeCode} are not shown`)
  const inPlace = aligned(header)
  const buffer = inPlace ? bytes.buffer : bytes.buffer.slice(header.vox_offset)
  const voxels = new type(buffer, inPlace ? header.vox_offset : 0, voxelsIn(header))
  const scaled = header.scl_slope !== 0 && Number.isFinite(header.scl_slope)
  return {
    shape: [header.dims[1]!, header.dims[2]!, header.dims[3]!],
    affine: header.affine,
    voxels,
    slope: scaled ? header.scl_slope : 1,
    intercept: scaled ? header.scl_inter : 0,
  }
}

/** Whether a file holds Hounsfield units as the page does. */
export function holdsHounsfield({ voxels, slope, intercept }: Nifti): boolean {
  return voxels instanceof Int16Array && slope === 1 && intercept === 0
}

/** A CT as Hounsfield units, rounded; shares the file's memory where that holds them already. */
export function hounsfield(volume: Nifti): Int16Array {
  const { voxels, slope, intercept } = volume
  if (holdsHounsfield(volume)) return voxels as Int16Array
  const hu = new Int16Array(voxels.length)
  for (let i = 0; i < hu.length; i++) {
    hu[i] = Math.min(Math.max(Math.round(voxels[i]! * slope + intercept), -32768), 32767)
  }
  return hu
}

/** A label map in the file's order as `.nii.gz`: uint8 on this grid, the affine as its sform. */
export async function writeLabelMap(map: Uint8Array<ArrayBuffer>, shape: Readonly<Vec3>, affine: Affine): Promise<Uint8Array<ArrayBuffer>> {
  const header = new DataView(new ArrayBuffer(HEADER_BYTES))
  const int16 = (at: number, ...values: number[]): void => values.forEach((value, n) => header.setInt16(at + 2 * n, value, true))
  const float = (at: number, ...values: number[]): void => values.forEach((value, n) => header.setFloat32(at + 4 * n, value, true))
  const side = (axis: number): number => Math.hypot(affine[0]![axis]!, affine[1]![axis]!, affine[2]![axis]!)
  header.setInt32(0, 348, true)
  int16(40, 3, ...shape, 1, 1, 1, 1)
  int16(70, NIFTI1.TYPE_UINT8, 8)
  float(76, 1, side(0), side(1), side(2), 1, 1, 1, 1)
  float(108, HEADER_BYTES, 1, 0)
  header.setUint8(123, 2) // millimetres
  int16(252, 0, 2) // no qform; the sform is aligned to the CT
  float(280, ...affine[0]!, ...affine[1]!, ...affine[2]!)
  ;[...'n+1'].forEach((letter, n) => header.setUint8(344 + n, letter.charCodeAt(0)))
  const packed = new Blob([header.buffer, map]).stream().pipeThrough(new CompressionStream('gzip'))
  return new Uint8Array(await new Response(packed).arrayBuffer())
}
