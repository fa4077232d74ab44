/** Click prompts: points, scribbles, boxes and lassos, of which an nnInteractive server makes a shape. */

import { t } from '../i18n'
import { button, h, replace, select } from '../dom'
import { attempt, say } from '../notices'
import type { Block } from '../views/planes'
import { PROMPT_KINDS, type Prompt, type PromptKind } from '../views/prompt'
import { NOTHING_CHANGED } from './texts'
import type { Workspace } from './workspace'

const KINDS: Record<PromptKind, string> = { point: t('Point'), scribble: t('Scribble'), box: t('Box'), lasso: t('Lasso') }

export class Prompts {
  readonly element = h('section', { class: 'prompts', 'aria-label': t('Click prompts') })
  private prompts: Prompt[] = []
  /** What the shape that is shown was made of. */
  private answered: Prompt[] = []
  private shape: Block | null = null
  private asking = false
  /** The server has a place for this case. */
  private held = false

  constructor(private readonly space: Workspace) {}

  /** Whether the site has a server for them. */
  get offered(): boolean {
    return this.space.work.detail.click_prompts
  }

  draw(): void {
    const { locked, work } = this.space
    this.element.hidden = !this.offered || locked
    if (this.element.hidden) return
    const { viewer } = work
    const act = (text: string, run: () => void, on: boolean, key?: string): HTMLElement => {
      const element = button(text, run, key ? { key } : {})
      element.disabled = !on
      return element
    }
    const ready = this.shape !== null && !this.asking
    const sides = [['inside', t('Inside the organ')], ['outside', t('Outside of it')]] as const
    replace(
      this.element,
      h('h2', {}, t('Click prompts')),
      h(
        'div',
        { class: 'row' },
        select(t('Kind of prompt'), PROMPT_KINDS.map((kind) => [kind, KINDS[kind]] as const), viewer.prompting.kind, (kind) => this.use({ kind: kind as PromptKind })),
        select(t('Where'), sides, viewer.prompting.positive ? 'inside' : 'outside', (side) => this.use({ positive: side === 'inside' })),
      ),
      h('output', { 'aria-label': t('Shape of the prompts') }, this.told),
      h('div', { class: 'row' }, act(t('Add to the organ'), () => this.accept(), ready, 'Enter'), act(t('Replace the organ'), () => this.replaceOrgan(), ready)),
      h('div', { class: 'row' }, act(t('Take the last prompt back'), () => this.shorten(), this.prompts.length > 0, 'Backspace'), act(t('Drop'), () => this.drop(), this.prompts.length > 0, 'Escape')),
    )
  }

  private get told(): string {
    if (this.asking) return t('Asking nnInteractive…')
    if (!this.shape) return t('Choose the tool Prompt, and point at the organ.')
    const ml = this.space.work.viewer.editor.volumeOf(this.shape.voxels).toFixed(1)
    return t('{ml} ml from {count} prompts', { ml, count: this.prompts.length })
  }

  private use(change: Partial<{ kind: PromptKind; positive: boolean }>): void {
    Object.assign(this.space.work.viewer.prompting, change)
    this.draw()
  }

  /** The next kind of prompt. */
  stepKind(): void {
    const { kind } = this.space.work.viewer.prompting
    this.use({ kind: PROMPT_KINDS[(PROMPT_KINDS.indexOf(kind) + 1) % PROMPT_KINDS.length]! })
  }

  /** What is pointed at next is the organ, or is not. */
  turn(): void {
    this.use({ positive: !this.space.work.viewer.prompting.positive })
  }

  give(prompt: Prompt): void {
    if (this.space.locked || !this.offered) return
    this.say([...this.prompts, prompt])
  }

  /** Take the last prompt back; false: there is none. */
  shorten(): boolean {
    if (this.prompts.length === 0) return false
    this.say(this.prompts.slice(0, -1))
    return true
  }

  private say(prompts: Prompt[]): void {
    this.prompts = prompts
    this.space.work.viewer.showPrompts(prompts)
    if (!this.asking) attempt(() => this.ask())
  }

  /** Ask for the shape, and again while people point at more. */
  private async ask(): Promise<void> {
    const { work } = this.space
    this.asking = true
    this.draw()
    try {
      while (this.answered !== this.prompts) {
        const { prompts } = this
        this.held ||= prompts.length > 0
        const shape = prompts.length > 0 ? await work.shapeOfPrompts(prompts) : null
        this.shape = shape
        this.answered = prompts
        if (prompts === this.prompts) work.viewer.showPreview(shape)
      }
    } catch (error) {
      this.prompts = this.answered // the last that the server could follow
      work.viewer.showPrompts(this.prompts)
      throw error
    } finally {
      this.asking = false
      this.draw()
    }
  }

  /** The shape becomes part of the organ; false: there is none. */
  accept(): boolean {
    return this.take((shape) => this.space.work.viewer.editor.add(shape))
  }

  private replaceOrgan(): void {
    this.take((shape) => this.space.work.viewer.takeShape(null, shape))
  }

  private take(change: (shape: Block) => boolean): boolean {
    const { shape } = this
    if (this.prompts.length === 0 || this.space.locked) return false
    if (!shape || this.asking) return true // Enter waits for it, and confirms nothing
    this.drop()
    if (!change(shape)) say(NOTHING_CHANGED)
    return true
  }

  /** Forget the prompts and their shape. */
  drop(): void {
    if (this.prompts.length === 0 && !this.shape) return
    this.prompts = []
    if (!this.asking) this.answered = this.prompts
    this.shape = null
    this.space.work.viewer.showPrompts([])
    this.space.work.viewer.showPreview(null)
    this.draw()
  }

  /** The case is left: somebody else may have the place at the server. */
  leave(): void {
    if (!this.held) return
    this.held = false
    attempt(() => this.space.work.leavePrompts())
  }
}
