/** Views, CT windows, tools, undo and the pen. */

import { heading, t } from '../i18n'
import { button, h, replace, select } from '../dom'
import { say } from '../notices'
import type { Editor, HuRange } from '../editor'
import type { Tool, View, WindowName } from '../viewer'
import { OBSTACLES } from './texts'
import { showSurfaces } from './surface'
import { PEN_SIZES, penSizeAfter, READING, TOOLS, VIEWS, WINDOW_NAMES } from './tools'
import { slabText } from '../views/marks'
import { SLABS_MM } from '../views/projection'
import type { Reshape } from './reshape'
import type { Remembered } from './remembered'
import type { Workspace } from './workspace'

export class Toolbar {
  readonly element = h('div', { class: 'row toolbar', role: 'toolbar', 'aria-label': t('Viewing and drawing') })
  private view: View = 'all'
  private window: WindowName | null = 'soft tissue'
  private tool: Tool = 'look'
  private slab = 0
  private penSize = 0
  private huRange: HuRange = { low: 0, high: 200 }

  constructor(
    private readonly space: Workspace,
    private readonly reshape: Reshape,
  ) {}

  draw(): void {
    const { locked, work } = this.space
    replace(
      this.element,
      group(
        t('View'),
        ...VIEWS.map(([view, text, key]) => pressed(button(text, () => this.setView(view), { key }), this.view === view)),
        button('3-D', () => showSurfaces(this.space), { key: 'D', label: t('Surfaces') }),
      ),
      group(t('Window'), ...WINDOW_NAMES.map((name, i) => pressed(button(heading(t(name)), () => this.setWindow(name), { key: String(i + 1) }), this.window === name))),
      this.slabField(),
      group(
        t('Tool'),
        ...TOOLS.map(([tool, text, key]) => pressed(enabled(button(text, () => this.setTool(tool), { key }), !locked || READING.has(tool)), this.tool === tool)),
        enabled(button(t('Interpolate'), () => this.interpolate(), { key: 'i' }), !locked),
      ),
      group(
        t('Edits'),
        enabled(button(t('Undo'), () => this.undo(), { key: 'z' }), work.history.canUndo && !locked),
        enabled(button(t('Redo'), () => this.redo(), { key: 'y' }), work.history.canRedo && !locked),
      ),
      this.penSizeField(),
      this.tick(t('Ball'), t('Draw on the slices around, too'), (editor) => editor.ball, (editor, on) => (editor.ball = on), 'B'),
      this.tick(t('Keep other organs'), t('Voxels of other organs stay unchanged'), (editor) => editor.protectOthers, (editor, on) => (editor.protectOthers = on)),
      this.rangeField(),
    )
  }

  private penSizeField(): HTMLElement {
    const slider = h('input', {
      type: 'range',
      min: '0',
      max: PEN_SIZES.length - 1,
      value: PEN_SIZES.indexOf(this.penSize),
      'aria-label': t('Pen size'),
      'aria-valuetext': this.penSizeText,
      oninput: () => {
        this.setPenSize(PEN_SIZES[Number(slider.value)]!)
        text.data = t('Pen {size}', { size: this.penSizeText }) // the slider itself stays: it is being dragged
        slider.setAttribute('aria-valuetext', this.penSizeText)
      },
    })
    const text = new Text(t('Pen {size}', { size: this.penSizeText }))
    return h('label', { class: 'field inline' }, text, slider)
  }

  private get penSizeText(): string {
    return this.penSize ? `${this.penSize} mm` : t('1 voxel')
  }

  private tick(text: string, what: string, is: (editor: Editor) => boolean, set: (editor: Editor, on: boolean) => void, key?: string): HTMLElement {
    const { editor } = this.space.work.viewer
    const box = h('input', { type: 'checkbox', checked: is(editor), 'aria-keyshortcuts': key, onchange: () => set(editor, box.checked) })
    return h('label', { class: 'field inline', title: what }, box, text)
  }

  toggleBall(): void {
    const { editor } = this.space.work.viewer
    editor.ball = !editor.ball
    this.draw()
  }

  /** Only voxels with Hounsfield units in this range are changed by tools. */
  private rangeField(): HTMLElement {
    const { editor } = this.space.work.viewer
    const set = (): void => {
      this.huRange = { low: Number(low.value), high: Number(high.value) }
      editor.range = box.checked ? this.huRange : null
    }
    const number = (value: number, label: string): HTMLInputElement => h('input', { type: 'number', class: 'hu', step: '10', value, 'aria-label': label, oninput: set })
    const box = h('input', { type: 'checkbox', checked: editor.range !== null, 'aria-label': t('Only in the HU range'), onchange: set })
    const low = number(this.huRange.low, t('Lowest HU'))
    const high = number(this.huRange.high, t('Highest HU'))
    return h('span', { class: 'field inline', title: t('Tools change only voxels in this range') }, box, 'HU', low, '–', high)
  }

  setView(view: View): void {
    this.view = view
    this.space.work.viewer.setView(view)
    this.draw()
  }

  private slabField(): HTMLElement {
    const field = select(t('MIP'), SLABS_MM.map((mm) => [String(mm), mm ? slabText(mm) : t('off')] as const), String(this.slab), (mm) => this.setSlab(Number(mm)))
    field.classList.add('inline')
    return field
  }

  private setSlab(mm: number): void {
    this.slab = mm
    this.space.work.viewer.setSlab(mm)
    this.draw()
  }

  /** A thicker slab; after the whole volume comes the slice. */
  stepSlab(): void {
    const sizes: readonly number[] = SLABS_MM
    this.setSlab(sizes[(sizes.indexOf(this.slab) + 1) % sizes.length]!)
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
    this.reshape.drop()
    this.space.work.viewer.setTool(tool)
    this.draw()
  }

  get state(): Pick<Remembered, 'window' | 'tool' | 'penSize'> {
    return { window: this.window, tool: this.tool, penSize: this.penSize }
  }

  /** The buttons as they were; the views are brought back by their scene. */
  restore({ scene, window, tool, penSize }: Remembered): void {
    this.view = scene.view
    this.slab = scene.slab
    this.window = window
    this.setPenSize(PEN_SIZES.includes(penSize) ? penSize : 0)
    this.setTool(tool)
    this.draw()
  }

  private setPenSize(size: number): void {
    this.penSize = size
    this.space.work.viewer.editor.penSize = size
  }

  /** A larger pen (a smaller one, where negative); with a region, more or fewer Hounsfield units. */
  stepPenSize(by: number): void {
    if (this.tool === 'region' && this.reshape.stepTolerance(by)) return
    this.setPenSize(penSizeAfter(this.penSize, by))
    this.draw()
  }

  interpolate(): void {
    if (this.space.locked) return
    const obstacle = this.space.work.viewer.editor.interpolate()
    if (obstacle) say(OBSTACLES[obstacle])
  }

  undo(): void {
    if (!this.space.locked && !this.space.work.viewer.editor.undo()) say(t('Nothing to undo'))
  }

  undoOrgan(): void {
    if (!this.space.locked && !this.space.work.viewer.editor.undoOrgan()) say(t('Nothing of this organ to undo'))
  }

  copySlice(by: 1 | -1): void {
    if (!this.space.locked) this.space.work.viewer.copySlice(by)
  }

  redo(): void {
    if (!this.space.locked && !this.space.work.viewer.editor.redo()) say(t('Nothing to redo'))
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
