/** The slice that each view shows now, as pictures that are only made again when it changes. */

import type { Axis } from '../edits'
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
  version: number
}

export class SlicePictures {
  private readonly pictures = new Map<Axis, Picture>()
  private version = 0

  constructor(private readonly palette: Palette) {}

  /** Every picture is to be made again. */
  outdate(): void {
    this.version += 1
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
      picture = { ct: layer(width, height), over: layer(width, height), slice: -1, version: -1 }
      this.pictures.set(axis, picture)
    }
    if (picture.slice === at && picture.version === this.version) return picture
    this.palette.draw(axis, at, layers, picture.ct.pixels, picture.over.pixels)
    picture.ct.context.putImageData(picture.ct.image, 0, 0)
    picture.over.context.putImageData(picture.over.image, 0, 0)
    picture.slice = at
    picture.version = this.version
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
