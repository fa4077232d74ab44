/** Views, CT windows, tools, undo and the pen. */

import { button, h, replace } from '../dom'
import { say } from '../notices'
import type { Tool, View, WindowName } from '../viewer'
import { PEN_SIZES, penSizeAfter, READING, TOOLS, VIEWS, WINDOW_NAMES } from './tools'
import type { Remembered } from './remembered'
import type { Workspace } from './workspace'

export class Toolbar {
  readonly element = h('div', { class: 'row toolbar', role: 'toolbar', 'aria-label': 'Viewing and drawing' })
  private view: View = 'all'
  private window: WindowName | null = 'soft tissue'
  private tool: Tool = 'look'
  private penSize = 1

  constructor(private readonly space: Workspace) {}

  draw(): void {
    const { locked, work } = this.space
    replace(
      this.element,
      group('View', ...VIEWS.map(([view, text, key]) => pressed(button(text, () => this.setView(view), { key }), this.view === view))),
      group('Window', ...WINDOW_NAMES.map((name, i) => pressed(button(name[0]!.toUpperCase() + name.slice(1), () => this.setWindow(name), { key: String(i + 1) }), this.window === name))),
      group(
        'Tool',
        ...TOOLS.map(([tool, text, key]) => pressed(enabled(button(text, () => this.setTool(tool), { key }), !locked || READING.has(tool)), this.tool === tool)),
        enabled(button('Interpolate', () => this.interpolate(), { key: 'i' }), !locked),
      ),
      group(
        'Edits',
        enabled(button('Undo', () => this.undo(), { key: 'z' }), work.history.canUndo && !locked),
        enabled(button('Redo', () => this.redo(), { key: 'y' }), work.history.canRedo && !locked),
      ),
      this.penSizeField(),
      this.protectField(),
    )
  }

  private penSizeField(): HTMLElement {
    const slider = h('input', {
      type: 'range',
      min: '0',
      max: PEN_SIZES.length - 1,
      value: PEN_SIZES.indexOf(this.penSize),
      'aria-label': 'Pen size',
      'aria-valuetext': `${this.penSize} voxels`,
      oninput: () => {
        this.setPenSize(PEN_SIZES[Number(slider.value)]!)
        text.data = this.penSizeText // the slider itself stays: it is being dragged
      },
    })
    const text = new Text(this.penSizeText)
    return h('label', { class: 'field inline' }, text, slider)
  }

  private get penSizeText(): string {
    return `Pen ${this.penSize}`
  }

  private protectField(): HTMLElement {
    const viewer = this.space.work.viewer
    const tick = h('input', {
      type: 'checkbox',
      checked: viewer.protectOthers,
      onchange: () => {
        viewer.protectOthers = tick.checked
      },
    })
    return h('label', { class: 'field inline', title: 'Voxels of other organs stay unchanged' }, tick, 'Keep other organs')
  }

  setView(view: View): void {
    this.view = view
    this.space.work.viewer.setView(view)
    this.draw()
  }

  setWindow(name: WindowName): void {
    this.window = name
    this.space.work.viewer.setWindow(name)
    this.draw()
  }

  /** The window was set in the views. */
  forgetWindow(): void {
    if (this.window === null) return
    this.window = null
    this.draw()
  }

  setTool(tool: Tool): void {
    if (this.space.locked && !READING.has(tool)) return
    this.tool = tool
    this.space.work.viewer.setTool(tool)
    this.draw()
  }

  get state(): Pick<Remembered, 'window' | 'tool' | 'penSize'> {
    return { window: this.window, tool: this.tool, penSize: this.penSize }
  }

  /** The buttons as they were; the views are brought back by their scene. */
  restore({ scene, window, tool, penSize }: Remembered): void {
    this.view = scene.view
    this.window = window
    this.setPenSize(penSize)
    this.setTool(tool)
    this.draw()
  }

  private setPenSize(size: number): void {
    this.penSize = size
    this.space.work.viewer.setPenSize(size)
  }

  stepPenSize(by: number): void {
    this.setPenSize(penSizeAfter(this.penSize, by))
    this.draw()
  }

  interpolate(): void {
    if (this.space.locked) return
    const obstacle = this.space.work.viewer.interpolate()
    if (obstacle) say(obstacle)
  }

  undo(): void {
    if (!this.space.locked && !this.space.work.viewer.undo()) say('Nothing to undo')
  }

  redo(): void {
    if (!this.space.locked && !this.space.work.viewer.redo()) say('Nothing to redo')
  }
}

function pressed(element: HTMLButtonElement, on: boolean): HTMLButtonElement {
  element.setAttribute('aria-pressed', String(on))
  return element
}

function enabled(element: HTMLButtonElement, on: boolean): HTMLButtonElement {
  element.disabled = !on
  return element
}

function group(label: string, ...children: HTMLElement[]): HTMLElement {
  return h('div', { class: 'group', role: 'group', 'aria-label': label }, children)
}
