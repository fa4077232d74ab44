/** Long work on voxels in short turns: between them the page draws, and hears keys and the mouse. */

/** Work that may be interrupted wherever it yields. */
export type Turns<T> = Generator<void, T>

const TURN_MS = 12

export async function inTurns<T>(work: Turns<T>): Promise<T> {
  for (let since = performance.now(); ; ) {
    const { done, value } = work.next()
    if (done) return value
    if (performance.now() - since < TURN_MS) continue
    await new Promise((resolve) => setTimeout(resolve))
    since = performance.now()
  }
}
