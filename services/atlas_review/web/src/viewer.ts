/** The three views of a case on NiiVue: CT, attention overlay, and the label map that is drawn in. */

import { DRAG_MODE, NVImage, Niivue, SHOW_RENDER, SLICE_TYPE } from '@niivue/niivue'
import type { Organ } from './api'
import { difference, put, type Axis, type Edit, type History } from './edits'
import { interpolate, type Dims } from './interpolate'

export type Tool = 'look' | 'pen' | 'eraser' | 'fill'
export type View = Axis | 'all'
export type Bytes = Uint8Array<ArrayBuffer>

/** Centre and width in Hounsfield units, as radiologists set them. */
export const WINDOWS = {
  'soft tissue': { centre: 40, width: 400 },
  liver: { centre: 60, width: 160 },
  bone: { centre: 400, width: 1800 },
} as const
export type WindowName = keyof typeof WINDOWS

/** Initial opacity of the overlays: the CT stays readable through both. */
export const OPACITY = { labels: 0.45, attention: 0.4 } as const

/** Where the crosshair is. */
export interface Location {
  ijk: [number, number, number]
  mm: [number, number, number]
  hu: number
  label: number
}

const AXES: readonly Axis[] = ['axial', 'coronal', 'sagittal']
const AXIS_OF_DIMENSION: Record<Axis, 0 | 1 | 2> = { sagittal: 0, coronal: 1, axial: 2 }
const SLICES: Record<View, SLICE_TYPE> = {
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  all: SLICE_TYPE.MULTIPLANAR,
}
/** The axial view is the main one, the other two stand beside it. [left, top, width, height] */
const ALL_VIEWS: { sliceType: SLICE_TYPE; position: [number, number, number, number] }[] = [
  { sliceType: SLICE_TYPE.AXIAL, position: [0, 0, 0.62, 1] },
  { sliceType: SLICE_TYPE.CORONAL, position: [0.62, 0, 0.38, 0.5] },
  { sliceType: SLICE_TYPE.SAGITTAL, position: [0.62, 0.5, 0.38, 0.5] },
]
const ATTENTION_COLOURS = {
  // From clear over red and yellow to white: no organ has one of these hues.
  R: [120, 255, 255, 255],
  G: [0, 60, 190, 255],
  B: [60, 0, 0, 200],
  A: [0, 140, 200, 255],
  I: [0, 60, 150, 255],
}
/** Attention (Eq. 4) at which the colours begin and end; the maps carry their scale of 1/136. */
const ATTENTION_SHOWN = [0.05, 1] as const
const ATTENTION = 1 // index of the overlay; the CT is 0
const ZOOM_STEP = 1.15

export class Viewer {
  onEdit: (edit: Edit) => void = () => {}
  onLocation: (location: Location) => void = () => {}
  /** The label map as it is in force, in NiiVue's RAS order. */
  private base: Bytes = new Uint8Array()
  /** The label map up to the last edit in the history; what NiiVue's map differs in is a new stroke. */
  private shadow: Bytes = new Uint8Array()
  private readonly nv: Niivue
  private readonly hidden = new Set<number>()
  private overlays = { labels: true, attention: true, outline: false }
  private opacity: { labels: number; attention: number } = { ...OPACITY }
  private peeking = false
  private pen: Organ
  private tool: Tool = 'look'
  private view: View = 'all'
  private inverseAffine: number[][] = []
  /** The last two slices on which an organ was drawn, newest first: interpolation fills between them. */
  private readonly drawn = new Map<number, { axis: Axis; slice: number }[]>()
  protectOthers = true

  private constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly organs: readonly Organ[],
    private readonly history: History,
  ) {
    this.pen = organs[0]!
    this.nv = new Niivue({
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.35, 0.75, 1, 0.8],
      crosshairWidth: 0.15,
      crosshairWidthUnit: 'percent',
      crosshairGap: 2,
      multiplanarShowRender: SHOW_RENDER.NEVER,
      multiplanarPadPixels: 4,
      isRuler: true,
      rulerColor: [0.6, 0.8, 0.6, 0.8],
      rulerWidth: 2,
      dragAndDropEnabled: false,
      loadingText: '',
      fontMinPx: 11,
      fontSizeScaling: 0.5,
      isForceMouseClickToVoxelCenters: true,
      isNearestInterpolation: false,
      clipPlaneHotKey: '',
      viewModeHotKey: '',
      cycleClipPlaneHotKey: '',
      logLevel: 'error',
      mouseEventConfig: {
        leftButton: { primary: DRAG_MODE.crosshair, withShift: DRAG_MODE.pan, withCtrl: DRAG_MODE.measurement },
        rightButton: DRAG_MODE.windowing,
        centerButton: DRAG_MODE.pan,
      },
    })
    // Our history is the only one: NiiVue's packs the whole volume after every stroke.
    this.nv.drawAddUndoBitmap = (): void => {}
    this.nv.onDrawingChanged = (action): void => {
      if (action !== 'draw') return
      // NiiVue draws each part of a stroke without its newest voxel: the last one is still missing.
      const [x, y, z] = this.nv.drawPenLocation as [number, number, number]
      if (!Number.isNaN(x)) this.nv.drawPt(x, y, z, this.nv.opts.penValue)
      this.commit()
    }
    this.nv.onLocationChange = (): void => this.reportLocation()
    // A stroke may end outside the canvas, where NiiVue does not report its end.
    canvas.addEventListener('mouseleave', this.commit)
    addEventListener('mouseup', this.commit)
    canvas.addEventListener('wheel', this.zoomWheel, { capture: true, passive: false })
  }

  static async open(canvas: HTMLCanvasElement, organs: readonly Organ[], history: History): Promise<Viewer> {
    const viewer = new Viewer(canvas, organs, history)
    await viewer.nv.attachToCanvas(canvas)
    viewer.nv.addColormap('atlas_attention', ATTENTION_COLOURS)
    return viewer
  }

  close(): void {
    this.onEdit = () => {}
    this.canvas.removeEventListener('mouseleave', this.commit)
    removeEventListener('mouseup', this.commit)
    const context = this.nv.gl
    this.nv.cleanup()
    context.getExtension('WEBGL_lose_context')?.loseContext()
  }

  // --- volumes ----------------------------------------------------------------------------------

  /** Load CT and label map (null: no label yet), both on one grid; the map is the base of all edits. */
  async load(ct: Bytes, labels: Bytes | null, affine: number[][]): Promise<void> {
    this.inverseAffine = invertAffine(affine)
    this.nv.addVolume(await NVImage.loadFromUrl({ url: ct, name: 'ct.nii.gz', colormap: 'gray' }))
    this.colourLabels()
    if (labels) {
      this.base = await this.readMap(labels)
    } else {
      this.nv.createEmptyDrawing()
      this.base = this.map.slice()
    }
    this.show(this.base.slice())
    this.setWindow('soft tissue')
    this.setView('all')
    this.applyOverlays()
    this.reportLocation()
  }

  async loadAttention(bytes: Bytes | null): Promise<void> {
    if (this.nv.volumes.length > ATTENTION) this.nv.removeVolumeByIndex(ATTENTION)
    if (!bytes) return
    const image = await NVImage.loadFromUrl({
      url: bytes,
      name: 'attention.nii.gz',
      colormap: 'atlas_attention',
      opacity: this.attentionOpacity(),
      cal_min: ATTENTION_SHOWN[0],
      cal_max: ATTENTION_SHOWN[1],
      colorbarVisible: false,
    })
    this.nv.addVolume(image)
  }

  /** A label map or mask of this grid, brought into the order of the drawing (RAS+). */
  async readMap(bytes: Bytes): Promise<Bytes> {
    const image = await NVImage.loadFromUrl({ url: bytes, name: 'label.nii.gz' })
    const kept = this.nv.drawBitmap
    if (!this.nv.loadDrawing(image)) throw new Error('The label lies on another grid than the CT')
    const map = this.nv.drawBitmap as Bytes
    if (kept) this.nv.drawBitmap = kept
    return map
  }

  private get map(): Bytes {
    return this.nv.drawBitmap as Bytes
  }

  private get dims(): Dims {
    const dims = this.nv.volumes[0]!.dimsRAS!
    return [dims[1]!, dims[2]!, dims[3]!]
  }

  private show(map: Bytes): void {
    this.nv.drawBitmap = map
    this.shadow = map.slice()
    this.nv.refreshDrawing(true)
  }

  // --- edits ------------------------------------------------------------------------------------

  /** Take over what NiiVue has drawn since the last time, without what is protected. */
  private readonly commit = (): void => {
    if (this.shadow.length === 0 || !this.nv.drawBitmap) return
    const raw = difference(this.shadow, this.map)
    if (!raw) return
    for (let n = 0; n < raw.index.length; n++) {
      if (!this.may(raw.before[n]!)) this.map[raw.index[n]!] = raw.before[n]!
    }
    const edit = difference(this.shadow, this.map)
    this.nv.refreshDrawing(true)
    if (!edit) return
    put(this.shadow, edit.index, edit.after)
    this.noteSlice()
    this.history.add(edit)
    this.onEdit(edit)
  }

  /** May the pen change a voxel that has this label now? Hidden organs are never touched. */
  private may(label: number): boolean {
    if (label === this.pen.label) return true
    if (this.tool === 'eraser' && this.protectOthers) return false
    return label === 0 || (!this.protectOthers && !this.hidden.has(label))
  }

  private noteSlice(): void {
    const axis = AXES[this.nv.drawPenAxCorSag]
    if (!axis) return
    const slice = this.nv.frac2vox(this.nv.scene.crosshairPos)[AXIS_OF_DIMENSION[axis]]
    const earlier = this.drawn.get(this.pen.label) ?? []
    const others = earlier.filter((one) => one.axis === axis && one.slice !== slice)
    this.drawn.set(this.pen.label, [{ axis, slice }, ...others].slice(0, 2))
  }

  /** Apply an edit from the history or a draft. */
  apply(edit: Edit): void {
    put(this.map, edit.index, edit.after)
    put(this.shadow, edit.index, edit.after)
    this.nv.refreshDrawing(true)
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

  /** Change the map as one edit; used by everything that is not a stroke. */
  private change(act: (map: Bytes) => void): boolean {
    act(this.map)
    const edit = difference(this.shadow, this.map)
    this.nv.refreshDrawing(true)
    if (!edit) return false
    put(this.shadow, edit.index, edit.after)
    this.history.add(edit)
    this.onEdit(edit)
    return true
  }

  /** Fill the slices between the last two drawn ones; returns why that is not possible, or null. */
  interpolate(): string | null {
    const slices = this.drawn.get(this.pen.label) ?? []
    const [one, two] = slices
    if (!one || !two) return 'Draw this organ on two slices of one view first'
    const [low, high] = [one.slice, two.slice].sort((a, b) => a - b) as [number, number]
    if (high - low < 2) return 'There is no slice between the last two that were drawn'
    this.change((map) => interpolate(map, this.dims, one.axis, [low, high], this.pen.label, (v) => this.may(v)))
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

  private async encode(map: Bytes): Promise<Bytes> {
    const bytes = await this.nv.volumes[0]!.saveToUint8Array('label.nii.gz', map)
    return bytes as Bytes
  }

  // --- tools and display ------------------------------------------------------------------------

  setTool(tool: Tool): void {
    this.tool = tool
    this.nv.setDrawingEnabled(tool !== 'look')
    this.nv.setPenValue(tool === 'eraser' ? 0 : this.pen.label, tool === 'fill')
    this.canvas.dataset.tool = tool
  }

  setPen(organ: Organ): void {
    this.pen = organ
    this.setTool(this.tool)
  }

  /** Side of the square pen, in voxels; NiiVue draws odd sizes. */
  setPenSize(voxels: number): void {
    this.nv.opts.penSize = voxels
  }

  setWindow(name: WindowName): void {
    const ct = this.nv.volumes[0]
    if (!ct) return
    const { centre, width } = WINDOWS[name]
    ct.cal_min = centre - width / 2
    ct.cal_max = centre + width / 2
    this.nv.updateGLVolume()
  }

  setView(view: View): void {
    this.view = view
    if (view === 'all') this.nv.setCustomLayout(ALL_VIEWS)
    else this.nv.clearCustomLayout()
    this.nv.setSliceType(SLICES[view])
  }

  setOrganShown(label: number, shown: boolean): void {
    if (shown) this.hidden.delete(label)
    else this.hidden.add(label)
    this.colourLabels()
    this.nv.refreshColormaps()
    this.nv.drawScene()
  }

  setOverlays(change: Partial<Viewer['overlays']>): void {
    this.overlays = { ...this.overlays, ...change }
    this.applyOverlays()
  }

  setOpacity(change: Partial<Viewer['opacity']>): void {
    this.opacity = { ...this.opacity, ...change }
    this.applyOverlays()
  }

  /** Show the bare CT while a key is held. */
  peek(bare: boolean): void {
    if (this.peeking === bare) return
    this.peeking = bare
    this.applyOverlays()
  }

  private attentionOpacity(): number {
    return this.overlays.attention && !this.peeking ? this.opacity.attention : 0
  }

  private applyOverlays(): void {
    const labels = this.overlays.labels && !this.peeking ? this.opacity.labels : 0
    const outlined = this.overlays.outline && labels > 0
    this.nv.drawRimOpacity = outlined ? Math.max(labels, 0.9) : -1
    this.nv.setDrawOpacity(outlined ? 0.04 : labels)
    const overlay = this.nv.volumes[ATTENTION]
    if (overlay && overlay.opacity !== this.attentionOpacity()) {
      this.nv.setOpacity(ATTENTION, this.attentionOpacity())
    }
  }

  private colourLabels(): void {
    const lut = new Uint8ClampedArray(256 * 4)
    const labels = Array.from({ length: 256 }, (_, i) => String(i))
    for (const { label, color, name } of this.organs) {
      const rgb = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16))
      lut.set([...rgb, this.hidden.has(label) ? 0 : 255], label * 4)
      labels[label] = name
    }
    this.nv.drawLut = { lut, labels }
  }

  // --- location ---------------------------------------------------------------------------------

  jumpTo(mm: readonly [number, number, number]): void {
    const fraction = this.nv.mm2frac([...mm, 1])
    this.nv.scene.crosshairPos = this.nv.vox2frac(this.nv.frac2vox(fraction))
    this.nv.drawScene()
    this.reportLocation()
  }

  /** Go through the slices of the view that is shown (of the axial one where all are). */
  scroll(slices: number): void {
    const axis = this.view === 'all' ? 'axial' : this.view
    const step: [number, number, number] = [0, 0, 0]
    step[AXIS_OF_DIMENSION[axis]] = slices
    this.nv.moveCrosshairInVox(...step)
    this.reportLocation()
  }

  zoom(steps: number): void {
    const [x, y, z, zoom] = this.nv.scene.pan2Dxyzmm
    const next = Math.min(Math.max(zoom! * ZOOM_STEP ** steps, 1), 16)
    this.nv.setPan2Dxyzmm(next === 1 ? [0, 0, 0, 1] : [x!, y!, z!, next])
  }

  private readonly zoomWheel = (event: WheelEvent): void => {
    if (!event.ctrlKey) return
    event.preventDefault()
    event.stopImmediatePropagation()
    this.zoom(-Math.sign(event.deltaY))
  }

  private reportLocation(): void {
    const ct = this.nv.volumes[0]
    if (!ct || !this.nv.drawBitmap) return
    const fraction = this.nv.scene.crosshairPos
    const [x, y, z] = this.nv.frac2vox(fraction) as unknown as [number, number, number]
    const [dx, dy] = this.dims
    const [a, b, c] = this.nv.frac2mm(this.nv.vox2frac([x, y, z]))
    const mm: [number, number, number] = [a!, b!, c!]
    const ijk = this.inverseAffine.map((row) =>
      Math.round(row[0]! * mm[0] + row[1]! * mm[1] + row[2]! * mm[2] + row[3]!),
    ) as [number, number, number]
    this.onLocation({ ijk, mm, hu: ct.getValue(x, y, z), label: this.map[x + dx * (y + dy * z)] ?? 0 })
  }
}

/** Rows of the inverse of a 4×4 affine (its first three rows). */
function invertAffine(affine: number[][]): number[][] {
  const [[a, b, c, x], [d, e, f, y], [g, i, j, z]] = affine as [number[], number[], number[]] as [
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

