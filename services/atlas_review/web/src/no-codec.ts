/** In place of the zarr codecs that NiiVue could load: no volume of this site needs one. */
export default class NoCodec {
  static fromConfig(): never {
    throw new Error('This page reads NIfTI, not zarr')
  }
}
