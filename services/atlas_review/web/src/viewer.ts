/** The three views of a case, drawn by the processor: CT, attention, and the label map that is drawn in. */

import type { Organ } from './api'
import { Editor, type StrokeKind } from './editor'
import { Census } from './voxels/census'
import type { Axis, History } from './voxels/edits'
import type { Box } from './voxels/solid'
import { attentionColours, labelColours } from './views/colours'
import { Grid, type Affine, type Vec3 } from './views/grid'
import { ComingCt } from './views/coming-ct'
import { hounsfield, readNifti, writeLabelMap } from './views/nifti'
import { drawMarks, measured, type Measure, type Outline, type Window } from './views/marks'
import { middle, panesOf, zoomed, type Camera, type Pane } from './views/panes'
import { countDifference, type Difference } from './views/difference'
import { Palette, PLANES, type Block, type Layers } from './views/planes'
import { Pointer } from './views/pointer'
import { Prompt, type PromptKind } from './views/prompt'
import { SlicePictures } from './views/pictures'
import { Projections, slabAround } from './views/projection'
import { Wire } from './views/wire'

export type Tool = 'look' | StrokeKind | 'region' | 'wire' | 'prompt' | 'length' | 'roi'
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
  slab: number
}

const DRAWING: ReadonlySet<Tool> = new Set(['pen', 'eraser', 'fill', 'scissors'])
const ZOOM_STEP = 1.15
const MEASURES = 20
/** While the pen is down, the other views follow it this often. */
const OTHER_VIEWS_MS = 150

export class Viewer {
  /** A spot was chosen from which a region is to grow. */
  onSeed: (voxel: Vec3) => void = () => {}
  /** Something was pointed at. */
  onPrompt: (prompt: Prompt) => void = () => {}
  /** What the tool for prompts draws. */
  readonly prompting: { kind: PromptKind; positive: boolean } = { kind: 'point', positive: true }
  /** The pen is to become larger, or smaller where negative. */
  onSize: (steps: number) => void = () => {}
  onLocation: (location: Location) => void = () => {}
  /** The window was set by hand, to none of the named ones. */
  onWindow: () => void = () => {}
  /** Where the pointer is; null where it has left the views. */
  onHover: (location: Location | null) => void = () => {}
  readonly editor: Editor
  private grid!: Grid
  private hu: Int16Array = new Int16Array()
  private attention: Block | null = null
  /** What somebody or a model says of the pen's organ. */
  private shape: Block | null = null
  private preview: Block | null = null
  private difference: Difference | null = null
  /** Attention (Eq. 4) from which it is shown. */
  private threshold = 0
  private crosshair: Vec3 = [0, 0, 0]
  private camera: Camera = { zoom: 1, centre: [0, 0, 0] }
  private ctWindow: Window = WINDOWS['soft tissue']
  private view: View = 'all'
  /** Thickness in mm of the slab whose highest values are shown; 0: the slice. */
  private slab = 0
  private overlays = { labels: true, attention: true, outline: false }
  private opacity: { labels: number; attention: number } = { ...OPACITY }
  private peeking = false
  private tool: Tool = 'look'
  private measures: Measure[] = []
  private wire: Wire | null = null
  /** What was pointed at, and what is being pointed at. */
  private prompts: readonly Prompt[] = []
  private prompt: Prompt | null = null
  private readonly palette = new Palette()
  private readonly pictures = new SlicePictures(this.palette)
  private readonly projections = new Projections(() => this.refresh('all'))
  private readonly context: CanvasRenderingContext2D
  private readonly pointer: Pointer
  private readonly resized = new ResizeObserver(() => this.resize())
  private frame = 0
  private drawnWhole = 0

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly organs: readonly Organ[],
    history: History,
  ) {
    this.editor = new Editor(organs, history, () => this.refresh())
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
      size: (steps) => this.onSize(steps),
      zoom: (pane, at, steps) => this.zoomAt(steps, this.under(pane, at)),
      hover: (pane, at) => this.hover(pane, at),
    })
  }

  close(): void {
    this.editor.close()
    this.resized.disconnect()
    this.pointer.close()
    cancelAnimationFrame(this.frame)
    this.hu = new Int16Array()
    this.attention = this.shape = this.preview = this.difference = null
    this.pictures.clear()
    this.projections.clear()
  }

  // --- volumes ----------------------------------------------------------------------------------

  /** Show a CT, from its middle slice on while it arrives; labels and attention come later. Its map is empty until then. */
  async load(ct: Stream, affine: Affine): Promise<void> {
    let coming: ComingCt | null = null
    const volume = await readNifti(ct, (part, slices) => {
      coming ??= ComingCt.of(part, slices, affine)
      if (coming?.take(slices)) this.showCt(coming.grid, coming.hu)
    })
    if (coming) return this.drawAll()
    const grid = new Grid(volume.shape, affine)
    this.showCt(grid, grid.toRas(hounsfield(volume)))
  }

  private showCt(grid: Grid, hu: Int16Array): void {
    this.grid = grid
    this.hu = hu
    this.editor.open(hu, grid.dims, grid.spacing)
    this.crosshair = middle(this.dims).map(Math.round) as Vec3
    this.camera = { zoom: 1, centre: middle(this.dims) }
    this.drawAll()
  }

  private drawAll(): void {
    this.refresh('all')
    this.drawNow()
  }

  /** The label map in force, on the grid of the CT (null: no label yet); the base of all edits. */
  async loadLabels(labels: Stream | null): Promise<void> {
    this.editor.load(labels ? await this.readMap(labels) : new Uint8Array(this.grid.voxels))
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
    return this.editor.loaded
  }

  private get dims(): Vec3 {
    return this.grid.dims
  }

  private get layers(): Layers {
    const { hu, attention, shape, preview, difference, dims } = this
    return { hu, labels: this.loaded ? this.editor.map : null, attention, shape, preview, difference, projected: (axis, at) => this.projected(axis, at), dims }
  }

  private projected(axis: Axis, at: number): Int16Array | null {
    if (this.slab === 0) return null
    const { through } = PLANES[axis]
    return this.projections.of(axis, this.hu, this.dims, slabAround(at, this.slab, this.grid.spacing[through], this.dims[through]))
  }

  // --- shapes -------------------------------------------------------------------------------------

  /** Outline the shape of an organ; null: none. */
  showShape(shape: Block | null): void {
    this.shape = shape
    this.refresh()
  }

  /** Outline what a tool would take; null: nothing. */
  showPreview(preview: Block | null): void {
    this.preview = preview
    this.refresh()
  }

  /** Draw what was pointed at. */
  showPrompts(prompts: readonly Prompt[]): void {
    this.prompts = prompts
    this.refreshMarks()
  }

  /** A voxel in the order of the file. */
  fileVoxel(voxel: Vec3): Vec3 {
    return this.grid.toFile(voxel)
  }

  /** Colour where two shapes differ; returns `countDifference`. null: no difference is shown. */
  showDifference(difference: Difference | null): [number, number] {
    this.difference = difference
    this.refresh()
    return this.countDifference()
  }

  /** How much only each of the two shapes has, in ml. */
  countDifference(): [number, number] {
    const { difference } = this
    const ml = this.grid.spacing.reduce((product, side) => product * side, 1) / 1000
    return difference ? (countDifference(difference, this.dims).map((voxels) => voxels * ml) as [number, number]) : [0, 0]
  }

  /** The box of a label of a map on the whole grid. */
  boxOf(map: Uint8Array, label: number): Box | null {
    return new Census(map, this.dims).box(label)
  }

  /** Give the pen's organ a shape (the outlined one), in a box of the file's voxels (null: everywhere), as one edit. */
  takeShape(box: readonly [Vec3, Vec3] | null, shape = this.shape): boolean {
    const ends = (box ?? [[0, 0, 0], this.grid.shape.map((size) => size - 1)]).map((corner) => this.grid.fromFile(corner))
    const [low, high] = [Math.min, Math.max].map((of) => this.dims.map((_, n) => of(ends[0]![n]!, ends[1]![n]!))) as [Vec3, Vec3]
    return shape !== null && this.editor.takeShape(shape, { low, high } satisfies Box)
  }

  get maps(): { base: Bytes; now: Bytes } {
    return { base: this.editor.base, now: this.editor.map }
  }

  /** The whole map as it is drawn now, as `.nii.gz` on the CT's grid. */
  exportMap(): Promise<Bytes> {
    return this.encode(this.editor.map)
  }

  /** One organ as a mask of zeros and ones, as `.nii.gz` on the CT's grid. */
  exportMask(label: number): Promise<Bytes> {
    return this.encode(this.editor.map.map((value) => (value === label ? 1 : 0)))
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
      this.editor.begin(this.tool as StrokeKind, pane.axis, this.crosshair[PLANES[pane.axis].through])
    } else if (this.tool === 'wire') {
      this.clickWire(pane.axis, voxel)
    } else if (this.tool === 'prompt') {
      this.prompt = new Prompt(this.prompting.kind, this.prompting.positive, pane.axis)
    } else if (this.tool === 'region') {
      this.moveTo(voxel)
      this.onSeed(voxel)
      return
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
    this.editor.strokeTo(voxel)
    this.prompt?.to(voxel)
    this.moveTo(voxel)
  }

  private release(): void {
    this.editor.end()
    const { prompt } = this
    this.prompt = null
    if (prompt?.whole) this.onPrompt(prompt)
  }

  private hover(pane: Pane | null, at: [number, number]): void {
    const voxel = pane && this.loaded ? this.voxel(pane, at) : null
    if (voxel && this.wireOn(pane!.axis)) {
      this.wire!.follow(voxel)
      this.refreshMarks()
    }
    this.onHover(voxel && this.describe(voxel))
  }

  // --- live wire --------------------------------------------------------------------------------

  /** Whether the wire lies on the slice that a view shows. */
  private wireOn(axis: Axis): boolean {
    return this.wire?.axis === axis && this.wire.slice === this.crosshair[PLANES[axis].through]
  }

  private clickWire(axis: Axis, voxel: Vec3): void {
    if (!this.wireOn(axis)) {
      const { centre, width } = this.ctWindow // the edges that are seen
      const grey = (at: Vec3): number => Math.min(Math.max((this.hu[this.index(at)]! - centre) / width + 0.5, 0), 1)
      this.wire = new Wire(axis, this.crosshair[PLANES[axis].through], this.dims, this.grid.spacing, grey)
    } else if (this.wire!.endsAt(voxel)) {
      this.closeWire()
      return
    }
    this.wire!.click(voxel)
  }

  /** Fill the outline of the wire; false: there is none. */
  closeWire(): boolean {
    const { wire } = this
    const outline = wire?.closed
    if (!wire || !outline) return false
    this.dropWire()
    this.editor.fill(wire.axis, wire.slice, outline)
    return true
  }

  /** Take the last click of the wire back. */
  shortenWire(): void {
    if (this.wire && !this.wire.back()) this.wire = null
    this.refreshMarks()
  }

  dropWire(): void {
    this.wire = null
    this.refreshMarks()
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
    this.prompt = null
    this.release()
    this.tool = tool
    this.wire = null
    this.showPreview(null)
    this.pointer.measures = tool === 'length' || tool === 'roi'
    this.canvas.dataset.tool = tool
  }

  setPen(organ: Organ): void {
    this.prompt = null
    this.release()
    this.editor.pen = organ
    this.wire = null
    this.showPreview(null)
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

  /** Show the highest values of a slab of so many millimetres around each slice; 0: the slices. */
  setSlab(mm: number): void {
    this.slab = mm
    this.projections.clear()
    this.refresh('all')
  }

  setOrganShown(label: number, shown: boolean): void {
    if (shown) this.editor.hidden.delete(label)
    else this.editor.hidden.add(label)
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
    const labels = labelColours(this.organs, this.editor.hidden, alpha('labels'))
    this.palette.setOverlays(labels, attentionColours(this.threshold, alpha('attention')), this.overlays.outline && alpha('labels') > 0)
    this.refresh()
  }

  /** Where and how the case is looked at. */
  get scene(): Scene {
    return { crosshair: this.crosshair, camera: this.camera, window: this.ctWindow, view: this.view, slab: this.slab }
  }

  set scene(scene: Scene) {
    this.camera = scene.camera
    this.setView(scene.view)
    this.setSlab(scene.slab)
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
    this.scrollIn(this.axis, slices)
  }

  private get axis(): Axis {
    return this.view === 'all' ? 'axial' : this.view
  }

  /** Copy the pen's organ to the next slice (the previous one, where negative), and go there. */
  copySlice(by: 1 | -1): void {
    const from = this.crosshair[PLANES[this.axis].through]
    const to = from + by
    if (to < 0 || to >= this.dims[PLANES[this.axis].through]) return
    this.editor.copySlice(this.axis, from, to)
    this.scroll(by)
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
    return { ijk: this.grid.toFile(voxel), mm: this.grid.toMm(voxel), hu: this.hu[index]!, label: this.editor.map[index] ?? 0 }
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

  private outlineIn(axis: Axis): Outline | null {
    const { drawing } = this.editor
    if (this.tool === 'scissors' && drawing?.axis === axis) return { way: drawing.corners, closed: true }
    return this.wireOn(axis) ? { way: this.wire!.way, closed: false } : null
  }

  private drawNow(): void {
    cancelAnimationFrame(this.frame)
    this.frame = 0
    const { context } = this
    const stroke = this.editor.drawing
    const whole = !stroke || performance.now() - this.drawnWhole > OTHER_VIEWS_MS
    if (whole) this.drawnWhole = performance.now()
    for (const pane of this.panes()) {
      if (!whole && pane.axis !== stroke?.axis) continue
      const { left, top, width, height } = pane.box
      context.fillStyle = '#000'
      context.fillRect(left, top, width, height)
      this.pictures.paint(context, pane, this.crosshair[PLANES[pane.axis].through], this.layers)
      drawMarks(context, pane, this.crosshair, { window: this.ctWindow, slab: this.slab }, this.dims, this.measures, this.outlineIn(pane.axis), devicePixelRatio)
      for (const prompt of this.prompt ? [...this.prompts, this.prompt] : this.prompts) prompt.draw(context, pane, this.crosshair, devicePixelRatio)
    }
  }
}
