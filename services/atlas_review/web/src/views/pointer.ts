/** What the mouse or the pen does in the views, as in a PACS. Points are in pixels of the canvas. */

import type { Pane } from './panes'

export interface PointerActions {
  paneAt: (x: number, y: number) => Pane | undefined
  /** The main button went down, to draw, to move the crosshair, or to measure (Ctrl, or the tool says so). */
  press: (pane: Pane, at: [number, number], measure: boolean) => void
  drag: (pane: Pane, at: [number, number]) => void
  release: () => void
  pan: (pane: Pane, dx: number, dy: number) => void
  window: (dx: number, dy: number) => void
  scroll: (pane: Pane, slices: number) => void
  zoom: (pane: Pane, at: [number, number], steps: number) => void
  /** Make the pen larger, or smaller where negative. */
  size: (steps: number) => void
  hover: (pane: Pane | null, at: [number, number]) => void
}

const [MAIN, MIDDLE, SECOND] = [0, 1, 2]
/** Pixels of a touchpad's scrolling that are one slice. */
const WHEEL_PX = 40

export class Pointer {
  /** The tool measures; and a measure is being taken. */
  measures = false
  measuring = false
  private held: { pane: Pane; action: 'main' | 'pan' | 'window'; at: [number, number] } | null = null
  private scrolled = 0
  private readonly listening = new AbortController()

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly act: PointerActions,
  ) {
    const { signal } = this.listening
    canvas.addEventListener('pointerdown', this.down, { signal })
    canvas.addEventListener('pointermove', this.move, { signal })
    canvas.addEventListener('pointerup', this.up, { signal })
    canvas.addEventListener('pointercancel', this.up, { signal })
    canvas.addEventListener('pointerleave', (event) => this.act.hover(null, this.point(event)), { signal })
    canvas.addEventListener('wheel', this.wheel, { signal, passive: false })
    canvas.addEventListener('contextmenu', (event) => event.preventDefault(), { signal })
  }

  close(): void {
    this.listening.abort()
  }

  private point(event: MouseEvent): [number, number] {
    const { left, top } = this.canvas.getBoundingClientRect()
    return [(event.clientX - left) * devicePixelRatio, (event.clientY - top) * devicePixelRatio]
  }

  private readonly down = (event: PointerEvent): void => {
    const at = this.point(event)
    const pane = this.act.paneAt(...at)
    if (!pane || this.held) return
    this.canvas.setPointerCapture(event.pointerId)
    this.canvas.focus()
    const { button, shiftKey } = event
    if (button === MIDDLE || button === SECOND) event.preventDefault()
    const action = button === SECOND ? 'window' : button === MIDDLE || shiftKey ? 'pan' : 'main'
    this.held = { pane, action, at }
    if (action !== 'main' || button !== MAIN) return
    this.measuring = this.measures || event.ctrlKey
    this.act.press(pane, at, this.measuring)
  }

  private readonly move = (event: PointerEvent): void => {
    const at = this.point(event)
    const { held } = this
    if (!held) {
      this.act.hover(this.act.paneAt(...at) ?? null, at)
      return
    }
    const [dx, dy] = [at[0] - held.at[0], at[1] - held.at[1]]
    held.at = at
    if (held.action === 'pan') this.act.pan(held.pane, dx, dy)
    else if (held.action === 'window') this.act.window(dx / devicePixelRatio, dy / devicePixelRatio)
    else this.act.drag(held.pane, at)
  }

  private readonly up = (): void => {
    const main = this.held?.action === 'main'
    this.held = null
    if (main) this.act.release()
    this.measuring = false
  }

  private readonly wheel = (event: WheelEvent): void => {
    event.preventDefault()
    const at = this.point(event)
    const pane = this.act.paneAt(...at)
    if (!pane) return
    const delta = event.deltaY || event.deltaX // browsers turn the wheel by Shift
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? delta / WHEEL_PX : delta
    if (Math.sign(lines) !== Math.sign(this.scrolled)) this.scrolled = 0
    this.scrolled += lines
    const whole = Math.trunc(this.scrolled)
    this.scrolled -= whole
    // A notch of a wheel is one slice, however far the system lets it scroll.
    const steps = Math.abs(delta) >= 100 ? Math.sign(delta) : whole
    if (steps === 0) return
    if (event.shiftKey) this.act.size(-steps)
    else if (event.ctrlKey) this.act.zoom(pane, at, -steps)
    else this.act.scroll(pane, -steps)
  }
}
