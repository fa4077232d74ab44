/** Surfaces of labels, drawn by vtk.js; loaded when somebody asks for them. */

import '@kitware/vtk.js/Rendering/OpenGL/Profiles/Geometry'
import vtkDataArray from '@kitware/vtk.js/Common/Core/DataArray'
import vtkImageData from '@kitware/vtk.js/Common/DataModel/ImageData'
import vtkPolyDataNormals from '@kitware/vtk.js/Filters/Core/PolyDataNormals'
import vtkImageMarchingCubes from '@kitware/vtk.js/Filters/General/ImageMarchingCubes'
import vtkWindowedSincPolyDataFilter from '@kitware/vtk.js/Filters/General/WindowedSincPolyDataFilter'
import vtkActor from '@kitware/vtk.js/Rendering/Core/Actor'
import vtkMapper from '@kitware/vtk.js/Rendering/Core/Mapper'
import vtkGenericRenderWindow from '@kitware/vtk.js/Rendering/Misc/GenericRenderWindow'
import type { Vec3 } from '../views/grid'
import type { Field } from '../voxels/field'

export type Side = 'front' | 'back' | 'left' | 'right' | 'above' | 'below'

/** From where the patient is looked at: towards the eye, and up, in right, anterior, superior. */
export const SIDES: Readonly<Record<Side, readonly [Vec3, Vec3]>> = {
  front: [[0, 1, 0], [0, 0, 1]],
  back: [[0, -1, 0], [0, 0, 1]],
  left: [[-1, 0, 0], [0, 0, 1]],
  right: [[1, 0, 0], [0, 0, 1]],
  above: [[0, 0, 1], [0, 1, 0]],
  below: [[0, 0, -1], [0, 1, 0]],
}

export class SurfaceScene {
  private readonly window = vtkGenericRenderWindow.newInstance({ background: [0, 0, 0], listenWindowResize: false })
  private readonly resized = new ResizeObserver(() => this.window.resize())

  constructor(container: HTMLElement) {
    this.window.setContainer(container)
    this.window.getRenderer().getActiveCamera().setParallelProjection(true)
    this.resized.observe(container)
  }

  /** Add a label's surface; `colour` as `#rrggbb`. */
  add({ shares, sides, spacing, origin }: Field, colour: string): void {
    const image = vtkImageData.newInstance({ spacing, origin })
    image.setDimensions(sides)
    image.getPointData().setScalars(vtkDataArray.newInstance({ values: shares, numberOfComponents: 1 }))
    const cubes = vtkImageMarchingCubes.newInstance({ contourValue: 0.5, computeNormals: false, mergePoints: true })
    cubes.setInputData(image)
    const smooth = vtkWindowedSincPolyDataFilter.newInstance({ nonManifoldSmoothing: 0, numberOfIterations: 15, passBand: 0.1 })
    smooth.setInputConnection(cubes.getOutputPort())
    const normals = vtkPolyDataNormals.newInstance()
    normals.setInputConnection(smooth.getOutputPort())
    const mapper = vtkMapper.newInstance({ scalarVisibility: false })
    mapper.setInputConnection(normals.getOutputPort())
    const actor = vtkActor.newInstance()
    actor.setMapper(mapper)
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255) as [number, number, number]
    actor.getProperty().set({ color: [r, g, b], ambient: 0.2, diffuse: 0.8, specular: 0.1 })
    this.window.getRenderer().addActor(actor)
  }

  /** Look from a side, at everything. */
  lookFrom(side: Side): void {
    const [eye, up] = SIDES[side]
    const renderer = this.window.getRenderer()
    const camera = renderer.getActiveCamera()
    camera.setFocalPoint(0, 0, 0)
    camera.setPosition(...eye)
    camera.setViewUp(...up)
    renderer.resetCamera()
    this.render()
  }

  /** Turn the patient by degrees. */
  turn(sideways: number, over: number): void {
    const camera = this.window.getRenderer().getActiveCamera()
    camera.azimuth(sideways)
    camera.elevation(over)
    camera.orthogonalizeViewUp()
    this.render()
  }

  zoom(factor: number): void {
    this.window.getRenderer().getActiveCamera().zoom(factor)
    this.render()
  }

  private render(): void {
    this.window.getRenderer().resetCameraClippingRange()
    this.window.getRenderWindow().render()
  }

  close(): void {
    this.resized.disconnect()
    this.window.delete()
  }
}
