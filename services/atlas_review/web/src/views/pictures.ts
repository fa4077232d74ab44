/** The slice that each view shows now, as pictures that are only made again when it changes. */

import type { Axis } from '../voxels/edits'
import type { Pane } from './panes'
import { PLANES, type Layers, type Palette } from './planes'

interface Layer {
  context: CanvasRenderingContext2D
  image: ImageData
  pixels: Uint32Array
}

interface Picture {
  ct: Layer
  over: Layer
  slice: number
  /** Of the CT's pixels, and of what lies over them. */
  ctVersion: number
  overVersion: number
}

export class SlicePictures {
  private readonly pictures = new Map<Axis, Picture>()
  private ctVersion = 0
  private overVersion = 0

  constructor(private readonly palette: Palette) {}

  /** Labels or attention are to be drawn again, or everything is. */
  outdate(what: 'over' | 'all'): void {
    this.overVersion += 1
    if (what === 'all') this.ctVersion += 1
  }

  clear(): void {
    this.pictures.clear()
  }

  /** Draw slice `at` into the box of its view: the CT smoothed, labels and attention by their voxels. */
  paint(context: CanvasRenderingContext2D, pane: Pane, at: number, layers: Layers): void {
    const picture = this.current(pane.axis, at, layers)
    const { left, top, width, height } = pane.box
    const to = pane.picture
    context.save()
    context.beginPath()
    context.rect(left, top, width, height)
    context.clip()
    for (const [layer, smooth] of [[picture.ct, true], [picture.over, false]] as const) {
      context.imageSmoothingEnabled = smooth
      context.drawImage(layer.context.canvas, to.left, to.top, to.width, to.height)
    }
    context.restore()
  }

  private current(axis: Axis, at: number, layers: Layers): Picture {
    const { across, up } = PLANES[axis]
    const [width, height] = [layers.dims[across], layers.dims[up]]
    let picture = this.pictures.get(axis)
    if (!picture || picture.ct.image.width !== width || picture.ct.image.height !== height) {
      picture = { ct: layer(width, height), over: layer(width, height), slice: -1, ctVersion: -1, overVersion: -1 }
      this.pictures.set(axis, picture)
    }
    const ctStays = picture.slice === at && picture.ctVersion === this.ctVersion
    if (ctStays && picture.overVersion === this.overVersion) return picture
    this.palette.draw(axis, at, layers, ctStays ? null : picture.ct.pixels, picture.over.pixels)
    if (!ctStays) picture.ct.context.putImageData(picture.ct.image, 0, 0)
    picture.over.context.putImageData(picture.over.image, 0, 0)
    Object.assign(picture, { slice: at, ctVersion: this.ctVersion, overVersion: this.overVersion })
    return picture
  }
}

function layer(width: number, height: number): Layer {
  const canvas = document.createElement('canvas')
  canvas.width = width
  canvas.height = height
  const context = canvas.getContext('2d', { willReadFrequently: true })!
  const image = context.createImageData(width, height)
  return { context, image, pixels: new Uint32Array(image.data.buffer) }
}
