/** Time spent on a case: counted only while the page is visible and somebody works with it. */

const IDLE_MS = 60_000
const TICK_MS = 1000
const SIGNS = ['pointermove', 'pointerdown', 'keydown', 'wheel'] as const

export class WorkClock {
  private readonly key: string
  private seen = performance.now()
  private readonly timer: ReturnType<typeof setInterval>
  private last = performance.now()
  private spent_ms: number

  /** `key` names the work in this browser: a reload goes on where it stopped. */
  constructor(key: string) {
    this.key = `seconds:${key}`
    this.spent_ms = Number(localStorage.getItem(this.key) ?? '0') || 0
    SIGNS.forEach((sign) => addEventListener(sign, this.sign, { passive: true, capture: true }))
    this.timer = setInterval(this.tick, TICK_MS)
  }

  get seconds(): number {
    return Math.round(this.spent_ms / 1000)
  }

  private readonly sign = (): void => {
    this.seen = performance.now()
  }

  private readonly tick = (): void => {
    const now = performance.now()
    const active = document.visibilityState === 'visible' && now - this.seen < IDLE_MS
    // A computer that slept makes one long tick: it counts as one short one.
    if (active) this.spent_ms += Math.min(now - this.last, 2 * TICK_MS)
    this.last = now
    localStorage.setItem(this.key, String(Math.round(this.spent_ms)))
  }

  stop(): void {
    clearInterval(this.timer)
    SIGNS.forEach((sign) => removeEventListener(sign, this.sign, { capture: true }))
  }

  /** The work was handed in: the next time begins at zero. */
  finish(): void {
    this.stop()
    localStorage.removeItem(this.key)
  }
}
