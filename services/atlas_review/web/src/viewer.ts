/** The three views of a case, drawn by the processor: CT, attention, and the label map that is drawn in. */

import type { Organ } from './api'
import { difference, put, type Axis, type Edit, type History } from './edits'
import { interpolate, type Dims } from './interpolate'
import { attentionColours, labelColours } from './views/colours'
import { Grid, type Affine, type Vec3 } from './views/grid'
import { hounsfield, readNifti, writeLabelMap } from './views/nifti'
import { drawMarks, measured, type Measure, type Window } from './views/marks'
import { middle, panesOf, zoomed, type Camera, type Pane } from './views/panes'
import { Changes, Stroke } from './views/pen'
import { Palette, PLANES, rowOf, type Block, type Layers } from './views/planes'
import { Pointer } from './views/pointer'
import { SlicePictures } from './views/pictures'

export type Tool = 'look' | 'pen' | 'eraser' | 'fill' | 'length' | 'roi'
export type View = Axis | 'all'
export type Bytes = Uint8Array<ArrayBuffer>
export type Stream = ReadableStream<Bytes>

/** Centre and width in Hounsfield units, as radiologists set them. */
export const WINDOWS = {
  'soft tissue': { centre: 40, width: 400 },
  liver: { centre: 60, width: 160 },
  bone: { centre: 400, width: 1800 },
} as const satisfies Record<string, Window>
export type WindowName = keyof typeof WINDOWS

/** Initial opacity of the overlays: the CT stays readable through both. */
export const OPACITY = { labels: 0.45, attention: 0.6 } as const

/** Where the crosshair or the pointer is. */
export interface Location {
  ijk: [number, number, number]
  mm: [number, number, number]
  hu: number
  label: number
}

/** What a reload of the page brings back. */
export interface Scene {
  crosshair: Vec3
  camera: Camera
  window: Window
  view: View
}

const DRAWING: ReadonlySet<Tool> = new Set(['pen', 'eraser', 'fill'])
const ZOOM_STEP = 1.15
const MEASURES = 20
/** While the pen is down, the other views follow it this often. */
const OTHER_VIEWS_MS = 150

export class Viewer {
  onEdit: (edit: Edit) => void = () => {}
  onLocation: (location: Location) => void = () => {}
  /** The window was set by hand, to none of the named ones. */
  onWindow: () => void = () => {}
  /** Where the pointer is; null where it has left the views. */
  onHover: (location: Location | null) => void = () => {}
  protectOthers = true
  private grid!: Grid
  private hu: Int16Array = new Int16Array()
  /** The label map as it is in force, and as it is drawn now. */
  private base: Bytes = new Uint8Array()
  private map: Bytes = new Uint8Array()
  private attention: Block | null = null
  /** What somebody or a model says of the pen's organ. */
  private shape: Block | null = null
  /** Attention (Eq. 4) from which it is shown. */
  private threshold = 0
  private crosshair: Vec3 = [0, 0, 0]
  private camera: Camera = { zoom: 1, centre: [0, 0, 0] }
  private ctWindow: Window = WINDOWS['soft tissue']
  private view: View = 'all'
  private readonly hidden = new Set<number>()
  private overlays = { labels: true, attention: true, outline: false }
  private opacity: { labels: number; attention: number } = { ...OPACITY }
  private peeking = false
  private pen: Organ
  private penSize = 1
  private tool: Tool = 'look'
  private stroke: Stroke | null = null
  private measures: Measure[] = []
  /** The last two slices on which an organ was drawn, newest first: interpolation fills between them. */
  private readonly drawn = new Map<number, { axis: Axis; slice: number }[]>()
  private readonly palette = new Palette()
  private readonly pictures = new SlicePictures(this.palette)
  private readonly context: CanvasRenderingContext2D
  private readonly pointer: Pointer
  private readonly resized = new ResizeObserver(() => this.resize())
  private frame = 0
  private drawnWhole = 0

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly organs: readonly Organ[],
    private readonly history: History,
  ) {
    this.pen = organs[0]!
    // Without a graphics card, a canvas of the GPU process is drawn by the processor all the same, and more slowly.
    this.context = canvas.getContext('2d', { alpha: false, willReadFrequently: true })!
    this.colour()
    this.palette.setWindow(this.ctWindow.centre, this.ctWindow.width)
    this.resized.observe(canvas)
    this.pointer = new Pointer(canvas, {
      paneAt: (x, y) => this.panes().find((pane) => pane.holds(x, y)),
      press: (pane, at, measure) => this.press(pane, at, measure),
      drag: (pane, at) => this.drag(pane, at),
      release: () => this.release(),
      pan: (pane, dx, dy) => this.pan(pane, dx, dy),
      window: (dx, dy) => this.dragWindow(dx, dy),
      scroll: (pane, slices) => this.scrollIn(pane.axis, slices),
      zoom: (pane, at, steps) => this.zoomAt(steps, this.under(pane, at)),
      hover: (pane, at) => this.onHover(pane && this.loaded ? this.describe(this.voxel(pane, at)) : null),
    })
  }

  close(): void {
    this.onEdit = () => {}
    this.resized.disconnect()
    this.pointer.close()
    cancelAnimationFrame(this.frame)
    this.hu = new Int16Array()
    this.base = this.map = new Uint8Array()
    this.attention = this.shape = null
    this.pictures.clear()
  }

  // --- volumes ----------------------------------------------------------------------------------

  /** Show a CT; labels and attention come later. Its map is empty until then. */
  async load(ct: Stream, affine: Affine): Promise<void> {
    const volume = await readNifti(ct)
    this.grid = new Grid(volume.shape, affine)
    this.hu = this.grid.toRas(hounsfield(volume))
    this.crosshair = middle(this.dims).map(Math.round) as Vec3
    this.camera = { zoom: 1, centre: middle(this.dims) }
    this.refresh('all')
    this.drawNow()
  }

  /** The label map in force, on the grid of the CT (null: no label yet); the base of all edits. */
  async loadLabels(labels: Stream | null): Promise<void> {
    this.base = labels ? await this.readMap(labels) : new Uint8Array(this.grid.voxels)
    this.show(this.base.slice())
    this.reportLocation()
  }

  /** Attention from `threshold` (Eq. 4) on is shown. */
  async loadAttention(stream: Stream | null, threshold: number): Promise<void> {
    this.threshold = threshold
    this.attention = stream ? await this.readBlock(stream) : null
    this.colour()
  }

  /** A uint8 volume on a part of the grid of the CT. */
  async readBlock(stream: Stream): Promise<Block> {
    const { voxels, shape, affine } = await readNifti(stream)
    if (!(voxels instanceof Uint8Array)) throw new Error('Attention maps and masks are uint8')
    const start = this.grid.origin(affine).map(Math.round) as Vec3
    const [one, two] = [this.grid.fromFile(start), this.grid.fromFile(start.map((at, n) => at + shape[n]! - 1))]
    const sides = one.map((at, n) => Math.abs(at - two[n]!) + 1) as Vec3
    return { voxels: this.grid.toRas(voxels, shape), sides, start: one.map((at, n) => Math.min(at, two[n]!)) as Vec3 }
  }

  /** A label map or mask of this grid, in RAS+ order. */
  async readMap(source: Stream | Bytes): Promise<Bytes> {
    const { voxels, shape } = await readNifti(source instanceof Uint8Array ? new Blob([source]).stream() : source)
    if (shape.some((size, n) => size !== this.grid.shape[n])) throw new Error('The label lies on another grid than the CT')
    const values = voxels instanceof Uint8Array ? voxels : Uint8Array.from(voxels)
    return this.grid.toRas(values as Bytes)
  }

  private get loaded(): boolean {
    return this.map.length > 0
  }

  private get dims(): Vec3 {
    return this.grid.dims
  }

  private get layers(): Layers {
    return { hu: this.hu, labels: this.loaded ? this.map : null, attention: this.attention, shape: this.shape, dims: this.dims }
  }

  private show(map: Bytes): void {
    this.map = map
    this.refresh()
  }

  // --- edits ------------------------------------------------------------------------------------

  /** May the pen change a voxel that has this label now? Hidden organs are never touched. */
  private may(label: number, erasing = this.tool === 'eraser'): boolean {
    if (label === this.pen.label) return true
    if (erasing && this.protectOthers) return false
    return label === 0 || (!this.protectOthers && !this.hidden.has(label))
  }

  /** Apply an edit from the history or a draft. */
  apply(edit: Edit): void {
    put(this.map, edit.index, edit.after)
    this.refresh()
  }

  undo(): boolean {
    return this.step(this.history.undo())
  }

  redo(): boolean {
    return this.step(this.history.redo())
  }

  private step(edit: Edit | null): boolean {
    if (!edit) return false
    this.apply(edit)
    this.onEdit(edit)
    return true
  }

  private record(edit: Edit | null): boolean {
    this.refresh()
    if (!edit) return false
    this.history.add(edit)
    this.onEdit(edit)
    return true
  }

  /** Change the map as one edit; used by everything that is not a stroke. */
  private change(act: (map: Bytes) => void): boolean {
    const before = this.map.slice()
    act(this.map)
    return this.record(difference(before, this.map))
  }

  /** Fill the slices between the last two drawn ones; returns why that is not possible, or null. */
  interpolate(): string | null {
    const slices = this.drawn.get(this.pen.label) ?? []
    const [one, two] = slices
    if (!one || !two) return 'Draw this organ on two slices of one view first'
    const [low, high] = [one.slice, two.slice].sort((a, b) => a - b) as [number, number]
    if (high - low < 2) return 'There is no slice between the last two that were drawn'
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

  /** Outline the shape of an organ; null: none. */
  showShape(shape: Block | null): void {
    this.shape = shape
    this.refresh()
  }

  /** Give the organ the outlined shape, in a box of the file's voxels (null: everywhere), as one edit. */
  takeShape(label: number, box: readonly [Vec3, Vec3] | null): boolean {
    const { shape, dims } = this
    if (!shape) return false
    const ends = (box ?? [[0, 0, 0], this.grid.shape.map((size) => size - 1)]).map((corner) => this.grid.fromFile(corner))
    const [low, high] = [Math.min, Math.max].map((of) => dims.map((_, n) => of(ends[0]![n]!, ends[1]![n]!))) as [Vec3, Vec3]
    const changes = new Changes(this.map)
    for (let z = low[2]; z <= high[2]; z++) {
      for (let y = low[1]; y <= high[1]; y++) {
        const first = this.index([0, y, z])
        const row = rowOf(shape, y, z)
        for (let x = low[0]; x <= high[0]; x++) {
          const now = this.map[first + x]!
          if (row?.[x - shape.start[0]]) {
            if (this.may(now, false)) changes.set(first + x, label)
          } else if (now === label) changes.set(first + x, 0)
        }
      }
    }
    return this.record(changes.edit)
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

  get maps(): { base: Bytes; now: Bytes } {
    return { base: this.base, now: this.map }
  }

  /** The whole map as it is drawn now, as `.nii.gz` on the CT's grid. */
  exportMap(): Promise<Bytes> {
    return this.encode(this.map)
  }

  /** One organ as a mask of zeros and ones, as `.nii.gz` on the CT's grid. */
  exportMask(label: number): Promise<Bytes> {
    return this.encode(this.map.map((value) => (value === label ? 1 : 0)))
  }

  private encode(map: Bytes): Promise<Bytes> {
    return writeLabelMap(this.grid.toFileOrder(map), this.grid.shape, this.grid.affine)
  }

  // --- the pointer ------------------------------------------------------------------------------

  private press(pane: Pane, at: [number, number], measure: boolean): void {
    if (!this.loaded) return
    const voxel = this.voxel(pane, at)
    if (measure || this.tool === 'length' || this.tool === 'roi') {
      const from = this.under(pane, at)
      const kind: Measure['kind'] = this.tool === 'roi' ? 'roi' : 'length'
      const slice = this.crosshair[PLANES[pane.axis].through]
      this.measures = [...this.measures, { kind, axis: pane.axis, slice, from, to: from, text: '' }].slice(-MEASURES)
    } else if (DRAWING.has(this.tool)) {
      const nib = { size: this.penSize, value: this.tool === 'eraser' ? 0 : this.pen.label, may: (label: number) => this.may(label) }
      this.stroke = new Stroke(this.map, this.dims, pane.axis, this.crosshair[PLANES[pane.axis].through], nib)
    }
    this.drag(pane, at, voxel)
  }

  private drag(pane: Pane, at: [number, number], voxel = this.voxel(pane, at)): void {
    const measure = this.measures.at(-1)
    if (this.pointer.measuring && measure) {
      measure.to = this.under(pane, at)
      measure.text = measured(measure.kind, measure.axis, measure.from, measure.to, this.grid.spacing, (one) => this.hu[this.index(this.clamped(one))]!)
      this.refreshMarks()
      return
    }
    this.stroke?.to(voxel)
    this.moveTo(voxel)
    if (this.stroke) this.refresh()
  }

  private release(): void {
    const { stroke } = this
    if (!stroke) return
    this.stroke = null
    if (this.tool === 'fill') stroke.fill()
    const edit = stroke.edit
    if (edit) this.noteSlice(stroke.axis, stroke.slice)
    this.record(edit)
  }

  private noteSlice(axis: Axis, slice: number): void {
    const earlier = this.drawn.get(this.pen.label) ?? []
    const others = earlier.filter((one) => one.axis === axis && one.slice !== slice)
    this.drawn.set(this.pen.label, [{ axis, slice }, ...others].slice(0, 2))
  }

  private pan(pane: Pane, dx: number, dy: number): void {
    const { across, up } = PLANES[pane.axis]
    const centre: Vec3 = [...this.camera.centre]
    centre[across] += dx / pane.pixels[0]
    centre[up] += dy / pane.pixels[1]
    this.camera = { ...this.camera, centre }
    this.refreshMarks()
  }

  private dragWindow(dx: number, dy: number): void {
    const width = Math.max(this.ctWindow.width * Math.exp(dx / 250), 1)
    this.applyWindow({ centre: this.ctWindow.centre + (dy * this.ctWindow.width) / 400, width })
    this.onWindow()
  }

  private under(pane: Pane, [x, y]: readonly [number, number]): Vec3 {
    return pane.at(x, y, this.crosshair)
  }

  private voxel(pane: Pane, at: readonly [number, number]): Vec3 {
    return this.clamped(this.under(pane, at))
  }

  private clamped(voxel: readonly number[]): Vec3 {
    return voxel.map((at, n) => Math.min(Math.max(Math.round(at), 0), this.dims[n]! - 1)) as Vec3
  }

  // --- tools and display ------------------------------------------------------------------------

  setTool(tool: Tool): void {
    this.release()
    this.tool = tool
    this.pointer.measures = tool === 'length' || tool === 'roi'
    this.canvas.dataset.tool = tool
  }

  setPen(organ: Organ): void {
    this.release()
    this.pen = organ
  }

  /** Diameter of the round pen, in voxels. */
  setPenSize(voxels: number): void {
    this.penSize = voxels
  }

  setWindow(name: WindowName): void {
    this.applyWindow(WINDOWS[name])
  }

  private applyWindow(window: Window): void {
    this.ctWindow = window
    this.palette.setWindow(window.centre, window.width)
    this.refresh('all')
  }

  setView(view: View): void {
    this.view = view
    this.resize()
  }

  setOrganShown(label: number, shown: boolean): void {
    if (shown) this.hidden.delete(label)
    else this.hidden.add(label)
    this.colour()
  }

  setOverlays(change: Partial<Viewer['overlays']>): void {
    this.overlays = { ...this.overlays, ...change }
    this.colour()
  }

  setOpacity(change: Partial<Viewer['opacity']>): void {
    this.opacity = { ...this.opacity, ...change }
    this.colour()
  }

  /** Show the bare CT while a key is held. */
  peek(bare: boolean): void {
    if (this.peeking === bare) return
    this.peeking = bare
    this.colour()
  }

  private colour(): void {
    const alpha = (overlay: 'labels' | 'attention'): number => (this.overlays[overlay] && !this.peeking ? this.opacity[overlay] : 0)
    const labels = labelColours(this.organs, this.hidden, alpha('labels'))
    this.palette.setOverlays(labels, attentionColours(this.threshold, alpha('attention')), this.overlays.outline && alpha('labels') > 0)
    this.refresh()
  }

  /** Where and how the case is looked at. */
  get scene(): Scene {
    return { crosshair: this.crosshair, camera: this.camera, window: this.ctWindow, view: this.view }
  }

  set scene(scene: Scene) {
    this.camera = scene.camera
    this.setView(scene.view)
    this.applyWindow(scene.window)
    this.moveTo(this.clamped(scene.crosshair))
  }

  // --- location ---------------------------------------------------------------------------------

  jumpTo(mm: readonly [number, number, number]): void {
    const voxel = this.clamped(this.grid.fromMm(mm))
    if (this.camera.zoom > 1) this.camera = { ...this.camera, centre: voxel }
    this.moveTo(voxel)
  }

  /** To a voxel of the file. */
  jumpToVoxel(ijk: readonly number[]): void {
    this.moveTo(this.clamped(this.grid.fromFile(ijk)))
  }

  /** Where the crosshair is. */
  get here(): Location {
    return this.describe(this.crosshair)
  }

  private moveTo(voxel: Vec3): void {
    this.crosshair = voxel
    this.refreshMarks()
    this.reportLocation()
  }

  /** Go through the slices of the view that is shown (of the axial one where all are). */
  scroll(slices: number): void {
    this.scrollIn(this.view === 'all' ? 'axial' : this.view, slices)
  }

  private scrollIn(axis: Axis, slices: number): void {
    if (!this.loaded) return
    const voxel: Vec3 = [...this.crosshair]
    voxel[PLANES[axis].through] += slices
    this.moveTo(this.clamped(voxel))
  }

  /** Closer (or farther, where negative), about the crosshair. */
  zoom(steps: number): void {
    this.zoomAt(steps, this.crosshair)
  }

  private zoomAt(steps: number, fixed: Readonly<Vec3>): void {
    this.camera = zoomed(this.camera, ZOOM_STEP ** steps, fixed, this.dims)
    this.refreshMarks()
  }

  private reportLocation(): void {
    if (this.loaded) this.onLocation(this.describe(this.crosshair))
  }

  private index([x, y, z]: Readonly<Vec3>): number {
    return x + this.dims[0] * (y + this.dims[1] * z)
  }

  private describe(voxel: Vec3): Location {
    const index = this.index(voxel)
    return { ijk: this.grid.toFile(voxel), mm: this.grid.toMm(voxel), hu: this.hu[index]!, label: this.map[index] ?? 0 }
  }

  // --- drawing ----------------------------------------------------------------------------------

  private panes(): Pane[] {
    if (this.hu.length === 0) return []
    return panesOf(this.view, this.canvas.width, this.canvas.height, this.dims, this.grid.spacing, this.camera)
  }

  private resize(): void {
    const density = devicePixelRatio
    this.canvas.width = Math.max(Math.round(this.canvas.clientWidth * density), 1)
    this.canvas.height = Math.max(Math.round(this.canvas.clientHeight * density), 1)
    this.drawNow()
  }

  /** Labels or attention, or all pixels of the slices have changed. */
  private refresh(what: 'over' | 'all' = 'over'): void {
    this.pictures.outdate(what)
    this.refreshMarks()
  }

  /** What lies where, or over the slices, has changed. */
  private refreshMarks(): void {
    this.frame ||= requestAnimationFrame(() => this.drawNow())
  }

  private drawNow(): void {
    cancelAnimationFrame(this.frame)
    this.frame = 0
    const { context } = this
    const whole = !this.stroke || performance.now() - this.drawnWhole > OTHER_VIEWS_MS
    if (whole) this.drawnWhole = performance.now()
    for (const pane of this.panes()) {
      if (!whole && pane.axis !== this.stroke?.axis) continue
      const { left, top, width, height } = pane.box
      context.fillStyle = '#000'
      context.fillRect(left, top, width, height)
      this.pictures.paint(context, pane, this.crosshair[PLANES[pane.axis].through], this.layers)
      drawMarks(context, pane, this.crosshair, this.ctWindow, this.dims, this.measures, devicePixelRatio)
    }
  }
}
