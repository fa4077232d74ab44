/** What is written over the views: crosshair, letters of orientation, scale, slice and window, measures. */

import { t } from '../i18n'
import type { Axis } from '../voxels/edits'
import type { Vec3 } from './grid'
import type { Pane } from './panes'
import { PLANES } from './planes'
import { WHOLE_MM } from './projection'

export interface Window {
  centre: number
  width: number
}

/** How the CT is shown: through which window, and through a slab of so many mm (0: none). */
export interface Shown {
  window: Window
  slab: number
}

/** What scissors or the live wire follow. */
export interface Outline {
  way: readonly Vec3[]
  closed: boolean
}

/** A line, or an ellipse in the box of its two corners, on one slice. */
export interface Measure {
  kind: 'length' | 'roi'
  axis: Axis
  slice: number
  from: Vec3
  to: Vec3
  text: string
}

const CROSSHAIR = '#4fc3ff'
const TEXT = '#d8e6d0'
const MEASURE = '#ffe28a'
const MARGIN = 6
const LINE = 16
/** Half of the gap in the crosshair, through which its voxel is seen. */
const GAP = 7
const BARS_MM = [1, 2, 5, 10, 20, 50, 100, 200]

export function drawMarks(context: CanvasRenderingContext2D, pane: Pane, crosshair: Vec3, { window, slab }: Shown, dims: Vec3, measures: readonly Measure[], outline: Outline | null, density: number): void {
  const { left, top, width, height } = pane.box
  const { through, letters } = PLANES[pane.axis]
  context.save()
  context.beginPath()
  context.rect(left, top, width, height)
  context.clip()
  drawCrosshair(context, pane, pane.place(crosshair), density)
  for (const measure of measures) {
    if (measure.axis === pane.axis && measure.slice === crosshair[through]) drawMeasure(context, pane, measure, density)
  }
  if (outline) drawOutline(context, pane, outline, density)
  const margin = MARGIN * density
  context.font = `${13 * density}px system-ui, 'DejaVu Sans', sans-serif`
  context.fillStyle = TEXT
  const text = (what: string, x: number, y: number, align: CanvasTextAlign, base: CanvasTextBaseline): void => {
    context.textAlign = align
    context.textBaseline = base
    context.strokeStyle = '#000c'
    context.lineWidth = 3 * density
    context.strokeText(what, x, y)
    context.fillText(what, x, y)
  }
  const [right, bottom] = [left + width - margin, top + height - margin]
  text(letters[0], left + margin, top + height / 2, 'left', 'middle')
  text(letters[1], right, top + height / 2, 'right', 'middle')
  text(letters[2], left + width / 2, top + margin, 'center', 'top')
  text(letters[3], left + width / 2, bottom, 'center', 'bottom')
  text(`${crosshair[through] + 1}/${dims[through]}`, left + margin, top + margin, 'left', 'top')
  text(`W ${Math.round(window.width)} L ${Math.round(window.centre)}`, right, top + margin, 'right', 'top')
  if (slab) text(slabText(slab), right, top + margin + LINE * density, 'right', 'top')
  const mm = BARS_MM.filter((one) => one * pane.scale <= width / 4).at(-1)
  if (mm) {
    context.fillRect(left + margin, bottom - 2 * density, mm * pane.scale, 2 * density)
    text(`${mm} mm`, left + margin, bottom - 4 * density, 'left', 'bottom')
  }
  context.restore()
}

/** `MIP 20 mm`. */
export function slabText(mm: number): string {
  return mm < WHOLE_MM ? `MIP ${mm} mm` : `MIP ${t('whole volume')}`
}

/** Light over dark, so that it is seen on bone as on air. */
function drawCrosshair(context: CanvasRenderingContext2D, pane: Pane, [x, y]: [number, number], density: number): void {
  const { left, top, width, height } = pane.box
  const gap = GAP * density
  for (const [colour, thick] of [['#000a', 3], [CROSSHAIR, 1]] as const) {
    context.strokeStyle = colour
    context.lineWidth = thick * density
    context.beginPath()
    for (const [x0, y0, x1, y1] of [[left, y, x - gap, y], [x + gap, y, left + width, y], [x, top, x, y - gap], [x, y + gap, x, top + height]] as const) {
      context.moveTo(x0, y0)
      context.lineTo(x1, y1)
    }
    context.stroke()
  }
}

function drawOutline(context: CanvasRenderingContext2D, pane: Pane, { way, closed }: Outline, density: number): void {
  context.strokeStyle = MEASURE
  context.lineWidth = 1.5 * density
  context.beginPath()
  for (const corner of way) context.lineTo(...pane.place(corner))
  if (closed) context.closePath()
  context.stroke()
}

function drawMeasure(context: CanvasRenderingContext2D, pane: Pane, { kind, from, to, text }: Measure, density: number): void {
  const [x0, y0] = pane.place(from)
  const [x1, y1] = pane.place(to)
  context.strokeStyle = MEASURE
  context.lineWidth = 1.5 * density
  context.beginPath()
  if (kind === 'length') {
    context.moveTo(x0, y0)
    context.lineTo(x1, y1)
  } else {
    context.ellipse((x0 + x1) / 2, (y0 + y1) / 2, Math.abs(x1 - x0) / 2, Math.abs(y1 - y0) / 2, 0, 0, 2 * Math.PI)
  }
  context.stroke()
  context.font = `${12 * density}px system-ui, 'DejaVu Sans', sans-serif`
  context.textAlign = 'left'
  context.textBaseline = 'bottom'
  context.lineWidth = 3 * density
  context.strokeStyle = '#000c'
  context.strokeText(text, Math.max(x0, x1) + 4 * density, Math.min(y0, y1))
  context.fillStyle = MEASURE
  context.fillText(text, Math.max(x0, x1) + 4 * density, Math.min(y0, y1))
}

/** Length in mm, or mean, deviation and area within the ellipse. */
export function measured(kind: Measure['kind'], axis: Axis, from: Vec3, to: Vec3, spacing: Vec3, huAt: (voxel: Vec3) => number): string {
  const { across, up, through } = PLANES[axis]
  const sides = [Math.abs(to[across] - from[across]), Math.abs(to[up] - from[up])] as const
  if (kind === 'length') return `${Math.hypot(sides[0] * spacing[across], sides[1] * spacing[up]).toFixed(1)} mm`
  const [a, b] = [(from[across] + to[across]) / 2, (from[up] + to[up]) / 2]
  const [ra, rb] = [Math.max(sides[0] / 2, 0.5), Math.max(sides[1] / 2, 0.5)]
  let [count, sum, squares] = [0, 0, 0]
  const voxel: Vec3 = [0, 0, 0]
  voxel[through] = from[through]
  for (voxel[up] = Math.ceil(b - rb); voxel[up] <= b + rb; voxel[up]++) {
    for (voxel[across] = Math.ceil(a - ra); voxel[across] <= a + ra; voxel[across]++) {
      if (((voxel[across] - a) / ra) ** 2 + ((voxel[up] - b) / rb) ** 2 > 1) continue
      const hu = huAt(voxel)
      count += 1
      sum += hu
      squares += hu * hu
    }
  }
  if (count === 0) return ''
  const mean = sum / count
  const deviation = Math.sqrt(Math.max(squares / count - mean * mean, 0))
  const area = (count * spacing[across] * spacing[up]) / 100
  return `${mean.toFixed(0)} ± ${deviation.toFixed(0)} HU, ${area.toFixed(1)} cm²`
}
