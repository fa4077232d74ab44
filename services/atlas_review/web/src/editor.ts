/** The label map that is drawn in: every change of it is one edit, which can be undone. */

import type { Organ } from './api'
import { Census } from './voxels/census'
import { connected } from './voxels/components'
import { difference, put, type Axis, type Edit, type History } from './voxels/edits'
import { shareField, type Field } from './voxels/field'
import { interpolate, planeOf, type Dims } from './voxels/interpolate'
import { around, eachRow, sidesOf, type Box, type Solid } from './voxels/solid'
import { inTurns, type Turns } from './voxels/turns'
import type { Vec3 } from './views/grid'
import { Changes, Stroke } from './views/pen'
import { PLANES, rowOf, type Block } from './views/planes'

type Bytes = Uint8Array<ArrayBuffer>

/** Hounsfield units, both included. */
export interface HuRange {
  low: number
  high: number
}

export type StrokeKind = 'pen' | 'eraser' | 'fill' | 'scissors'

const MM3_PER_ML = 1000

export class Editor {
  onEdit: (edit: Edit) => void = () => {}
  protectOthers = true
  /** The organs that nothing changes, and those that are not shown, which no tool changes either. */
  readonly locked = new Set<number>()
  readonly hidden = new Set<number>()
  /** Only voxels in it are changed by tools; null: all. */
  range: HuRange | null = null
  pen: Organ
  /** Diameter in mm; 0: one voxel. */
  penSize = 0
  ball = false
  /** The label map as it is in force, and as it is drawn now. */
  base: Bytes = new Uint8Array()
  map: Bytes = new Uint8Array()
  private census!: Census
  private stroke: { kind: StrokeKind; stroke: Stroke } | null = null
  /** Something long is being computed: nothing else changes the map until it is done. */
  private busy = false
  /** The last two slices on which an organ was drawn, newest first: interpolation fills between them. */
  private readonly drawn = new Map<number, { axis: Axis; slice: number }[]>()

  constructor(
    organs: readonly Organ[],
    private readonly history: History,
    private readonly onChange: () => void,
  ) {
    this.pen = organs[0]!
  }

  private hu!: Int16Array
  private dims!: Vec3
  private spacing!: Vec3

  open(hu: Int16Array, dims: Vec3, spacing: Vec3): void {
    Object.assign(this, { hu, dims, spacing })
  }

  close(): void {
    this.onEdit = () => {}
    this.hu = new Int16Array()
    this.base = this.map = new Uint8Array()
  }

  get loaded(): boolean {
    return this.map.length > 0
  }

  /** Millilitres of a label as it is drawn now. */
  volume(label: number): number {
    return this.loaded ? this.census.voxels[label]! * this.voxel_ml : 0
  }

  /** A box that holds a label as it is in force and as it is drawn now; null: there is none. */
  box(label: number): Box | null {
    return this.census.box(label)
  }

  /** Whether an organ is shown and has a voxel. */
  shows(label: number): boolean {
    return this.loaded && !this.hidden.has(label) && this.census.voxels[label]! > 0
  }

  /** A label as it is drawn now, for its surface; null: it has none. */
  field(label: number): Turns<Field> | null {
    const box = this.census.box(label)
    return box && shareField(this.map, this.dims, this.spacing, label, box)
  }

  /** Millilitres of a mask. */
  volumeOf(mask: Uint8Array): number {
    return mask.reduce((sum, one) => sum + one, 0) * this.voxel_ml
  }

  private get voxel_ml(): number {
    return (this.spacing[0] * this.spacing[1] * this.spacing[2]) / MM3_PER_ML
  }

  /** The map in force: the base of all edits. */
  load(base: Bytes): void {
    this.base = base
    this.show(base.slice())
  }

  private show(map: Bytes): void {
    this.map = map
    this.census = new Census(map, this.dims)
    this.onChange()
  }

  /** Lay the labels of a draft over the map in force; everything else stays as it is in force. */
  restore(draft: Bytes, labels: ReadonlySet<number>): void {
    const map = this.base.slice()
    for (let i = 0; i < map.length; i++) {
      if (labels.has(map[i]!)) map[i] = 0
      if (labels.has(draft[i]!)) map[i] = draft[i]!
    }
    this.show(map)
  }

  /** Discard every edit. */
  reset(): void {
    this.show(this.base.slice())
  }

  // --- what may be changed ------------------------------------------------------------------------

  /** May a voxel that has this label now become the pen's, or (`erasing`) lose it? */
  private may(label: number, erasing = false): boolean {
    if (this.locked.has(label) || this.locked.has(this.pen.label)) return false
    if (label === this.pen.label) return true
    if (erasing && this.protectOthers) return false
    return label === 0 || (!this.protectOthers && !this.hidden.has(label))
  }

  private inRange(index: number): boolean {
    const { range } = this
    return range === null || (this.hu[index]! >= range.low && this.hu[index]! <= range.high)
  }

  // --- edits --------------------------------------------------------------------------------------

  /** Apply an edit from the history or a draft. */
  apply(edit: Edit): void {
    put(this.map, edit.index, edit.after)
    this.census.note(edit)
    this.onChange()
  }

  undo(): boolean {
    return this.step(this.busy ? null : this.history.undo())
  }

  redo(): boolean {
    return this.step(this.busy ? null : this.history.redo())
  }

  /** Undo the last edit of the pen's organ, and of nothing else. */
  undoOrgan(): boolean {
    const edit = this.busy ? null : this.history.undoOf(this.pen.label, this.map)
    if (edit) this.apply(edit)
    if (edit) this.onEdit(edit)
    return edit !== null
  }

  private step(edit: Edit | null): boolean {
    if (!edit) return false
    this.apply(edit)
    this.onEdit(edit)
    return true
  }

  private record(edit: Edit | null): boolean {
    if (edit) this.census.note(edit)
    this.onChange()
    if (!edit) return false
    this.history.add(edit)
    this.onEdit(edit)
    return true
  }

  /** Change the map as one edit; used by everything that is not a stroke. */
  private change(act: (map: Bytes) => void): boolean {
    if (this.busy) return false
    const before = this.map.slice()
    act(this.map)
    return this.record(difference(before, this.map))
  }

  /** Fill the slices between the last two drawn ones; returns why that is not possible, or null. */
  interpolate(): 'not drawn' | 'no slice between' | null {
    const slices = this.drawn.get(this.pen.label) ?? []
    const [one, two] = slices
    if (!one || !two) return 'not drawn'
    const [low, high] = [one.slice, two.slice].sort((a, b) => a - b) as [number, number]
    if (high - low < 2) return 'no slice between'
    this.change((map) => interpolate(map, this.dims as Dims, one.axis, [low, high], this.pen.label, (v) => this.may(v)))
    return null
  }

  /** Take over the organ of another map (any non-zero voxel of a mask), as one edit. */
  replaceOrgan(label: number, mask: Bytes): void {
    this.change((map) => {
      for (let i = 0; i < map.length; i++) {
        if (mask[i]) map[i] = label
        else if (map[i] === label) map[i] = 0
      }
    })
  }

  /** Give the pen's organ a shape within a box of RAS+ voxels, as one edit. */
  takeShape(shape: Block, { low, high }: Box): boolean {
    const solid = (_: number, x: number, row: Uint8Array | null): boolean => Boolean(row?.[x - shape.start[0]])
    return this.becomes({ low, high }, (y, z) => rowOf(shape, y, z), solid, false)
  }

  /** Within a box, the pen's organ becomes what `inside` says, as far as other labels allow it. */
  private becomes<Row>({ low, high }: Box, rowAt: (y: number, z: number) => Row, inside: (index: number, x: number, row: Row) => boolean, ranged: boolean): boolean {
    if (this.busy) return false
    const { map, pen, dims } = this
    const changes = new Changes(map)
    for (let z = low[2]; z <= high[2]; z++) {
      for (let y = low[1]; y <= high[1]; y++) {
        const row = rowAt(y, z)
        for (let x = low[0], i = low[0] + dims[0] * (y + dims[1] * z); x <= high[0]; x++, i++) {
          const now = map[i]!
          const take = inside(i, x, row)
          if (take === (now === pen.label) || (ranged && !this.inRange(i))) continue
          if (this.may(now)) changes.set(i, take ? pen.label : 0)
        }
      }
    }
    return this.record(changes.edit)
  }

  /** The pen's organ on one slice as it is on another one. */
  copySlice(axis: Axis, from: number, to: number): boolean {
    const { width, height, at } = planeOf(axis, this.dims)
    const { label } = this.pen
    if (this.busy) return false
    const changes = new Changes(this.map)
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        const [there, here] = [at(column, row, from), at(column, row, to)]
        const take = this.map[there] === label
        if (take === (this.map[here] === label) || !this.inRange(here)) continue
        if (this.may(this.map[here]!)) changes.set(here, take ? label : 0)
      }
    }
    this.noteSlice(axis, to)
    return this.record(changes.edit)
  }

  // --- strokes ------------------------------------------------------------------------------------

  begin(kind: StrokeKind, axis: Axis, slice: number): boolean {
    if (this.busy) return false
    const erasing = kind === 'eraser' || kind === 'scissors'
    const may = (index: number): boolean => this.may(this.map[index]!, erasing) && this.inRange(index)
    // Scissors cut the pen's organ only.
    const mayCut = (index: number): boolean => this.map[index] === this.pen.label && may(index)
    const outline = kind === 'fill' || kind === 'scissors'
    const nib = { size: outline ? 0 : this.penSize, ball: this.ball, value: erasing ? 0 : this.pen.label, may: kind === 'scissors' ? mayCut : may }
    this.stroke = { kind, stroke: new Stroke(this.map, this.dims, this.spacing, axis, slice, nib, kind === 'scissors') }
    return true
  }

  /** The stroke that is being drawn. */
  get drawing(): Stroke | null {
    return this.stroke?.stroke ?? null
  }

  strokeTo(voxel: Vec3): void {
    if (!this.stroke) return
    this.stroke.stroke.to(voxel)
    this.onChange()
  }

  end(): void {
    if (!this.stroke) return
    const { kind, stroke } = this.stroke
    this.stroke = null
    const { through } = PLANES[stroke.axis]
    const box = this.census.box(this.pen.label)
    if (kind === 'fill') stroke.fill()
    if (kind === 'scissors' && box) stroke.cut(box.low[through], box.high[through])
    const edit = stroke.edit
    if (edit && kind !== 'scissors') this.noteSlice(stroke.axis, stroke.slice)
    this.record(edit)
  }

  /** Draw a closed outline and what lies inside, as one edit. */
  fill(axis: Axis, slice: number, outline: readonly Vec3[]): void {
    if (!this.begin('fill', axis, slice)) return
    for (const voxel of outline) this.stroke!.stroke.to(voxel)
    this.end()
  }

  private noteSlice(axis: Axis, slice: number): void {
    const earlier = this.drawn.get(this.pen.label) ?? []
    const others = earlier.filter((one) => one.axis === axis && one.slice !== slice)
    this.drawn.set(this.pen.label, [{ axis, slice }, ...others].slice(0, 2))
  }

  // --- the organ as a whole -----------------------------------------------------------------------

  /** The pen's organ becomes what `work` makes of it, which reaches at most `mm` beyond it; false: it stays as it is. */
  async reshape(work: (organ: Solid) => Turns<Uint8Array>, mm: number): Promise<boolean> {
    const extent = this.census.box(this.pen.label)
    if (!extent || this.busy) return false
    const box = around(extent, mm, this.spacing, this.dims)
    const { label } = this.pen
    const organ = this.solid(box, (i) => this.map[i] === label)
    const result = await this.alone(work(organ))
    if (!result || this.pen.label !== label) return false
    let n = 0
    return this.becomes(box, () => null, () => result[n++] === 1, true)
  }

  private solid(box: Box, inside: (index: number) => boolean): Solid {
    const sides = sidesOf(box)
    const mask = new Uint8Array(sides[0] * sides[1] * sides[2])
    eachRow(box, this.dims, (inVolume, inBox, length) => {
      for (let n = 0; n < length; n++) mask[inBox + n] = inside(inVolume + n) ? 1 : 0
    })
    return { mask, sides, spacing: this.spacing }
  }

  /** No tool changes the map meanwhile; null: it was closed, or replaced by a draft. */
  private async alone<T>(work: Turns<T>): Promise<T | null> {
    const { map } = this
    this.busy = true
    try {
      const result = await inTurns(work)
      return this.map === map ? result : null
    } finally {
      this.busy = false
    }
  }

  /**
   * What hangs together with a voxel, within `mm` of it, among voxels that may become the pen's organ and whose
   * Hounsfield units lie within `tolerance` of the voxel's (or in the range that tools are bound to).
   */
  async region(seed: Vec3, tolerance: number, mm: number): Promise<Block | null> {
    if (this.busy) return null
    const { spacing, dims, hu, map } = this
    const box = around({ low: [...seed], high: [...seed] }, mm, spacing, dims)
    const middle = hu[seed[0] + dims[0] * (seed[1] + dims[1] * seed[2])]!
    const near = (index: number): boolean => {
      const [x, y, z] = [index % dims[0], Math.floor(index / dims[0]) % dims[1], Math.floor(index / (dims[0] * dims[1]))]
      return ((x - seed[0]) * spacing[0]) ** 2 + ((y - seed[1]) * spacing[1]) ** 2 + ((z - seed[2]) * spacing[2]) ** 2 <= mm * mm
    }
    const wanted = (i: number): boolean => (this.range ? this.inRange(i) : Math.abs(hu[i]! - middle) <= tolerance)
    const solid = this.solid(box, (i) => wanted(i) && this.may(map[i]!) && near(i))
    const [x, y, z] = seed.map((at, n) => at - box.low[n]!) as Vec3
    const found = await this.alone(connected(solid, x + solid.sides[0] * (y + solid.sides[1] * z)))
    return found && { voxels: found, sides: [...solid.sides], start: box.low }
  }

  /** A region becomes part of the pen's organ. */
  add(region: Block): boolean {
    const box: Box = { low: region.start, high: region.start.map((at, n) => at + region.sides[n]! - 1) as Vec3 }
    const { label } = this.pen
    const solid = (i: number, x: number, row: Uint8Array | null): boolean => Boolean(row?.[x - region.start[0]]) || this.map[i] === label
    return this.becomes(box, (y, z) => rowOf(region, y, z), solid, true)
  }
}
