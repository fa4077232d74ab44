/** Time spent on a case, counted only while the page is visible and in use. */

const IDLE_MS = 60_000
const TICK_MS = 1000
const ACTIVITY = ['pointermove', 'pointerdown', 'keydown', 'wheel'] as const

export class WorkClock {
  private readonly key: string
  private activeAt = performance.now()
  private readonly timer: ReturnType<typeof setInterval>
  private last = performance.now()
  private spent_ms: number

  /** `key` names the work in this browser: after a reload the clock continues. */
  constructor(key: string) {
    this.key = `seconds:${key}`
    this.spent_ms = Number(localStorage.getItem(this.key) ?? '0') || 0
    ACTIVITY.forEach((event) => addEventListener(event, this.onActivity, { passive: true, capture: true }))
    this.timer = setInterval(this.tick, TICK_MS)
  }

  /** To the tenth, up to this moment: a stroke may be drawn and handed in between two ticks. */
  get seconds(): number {
    this.tick()
    return Math.round(this.spent_ms / 100) / 10
  }

  private readonly onActivity = (): void => {
    this.activeAt = performance.now()
  }

  private readonly tick = (): void => {
    const now = performance.now()
    const active = document.visibilityState === 'visible' && now - this.activeAt < IDLE_MS
    // A computer that slept gives one long tick, which counts as a short one.
    if (active) this.spent_ms += Math.min(now - this.last, 2 * TICK_MS)
    this.last = now
    localStorage.setItem(this.key, String(Math.round(this.spent_ms)))
  }

  stop(): void {
    clearInterval(this.timer)
    ACTIVITY.forEach((event) => removeEventListener(event, this.onActivity, { capture: true }))
  }

  /** The work was handed in: the next one begins at zero. */
  finish(): void {
    this.stop()
    localStorage.removeItem(this.key)
  }
}
