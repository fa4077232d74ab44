/** Filters of vtk.js that come without types. */
declare module '@kitware/vtk.js/Filters/General/ImageMarchingCubes' {
  import type { vtkAlgorithm, vtkObject } from '@kitware/vtk.js/interfaces'
  interface Options {
    contourValue: number
    computeNormals: boolean
    mergePoints: boolean
  }
  const vtkImageMarchingCubes: { newInstance(options: Options): vtkAlgorithm & vtkObject }
  export default vtkImageMarchingCubes
}
declare module '@kitware/vtk.js/Filters/Core/PolyDataNormals' {
  import type { vtkAlgorithm, vtkObject } from '@kitware/vtk.js/interfaces'
  const vtkPolyDataNormals: { newInstance(): vtkAlgorithm & vtkObject }
  export default vtkPolyDataNormals
}
declare module '@kitware/vtk.js/Filters/General/WindowedSincPolyDataFilter' {
  import type { vtkAlgorithm, vtkObject } from '@kitware/vtk.js/interfaces'
  interface Options {
    nonManifoldSmoothing: 0 | 1
    numberOfIterations: number
    passBand: number
  }
  const vtkWindowedSincPolyDataFilter: { newInstance(options: Options): vtkAlgorithm & vtkObject }
  export default vtkWindowedSincPolyDataFilter
}
