import { FINISHED, path, Problem, type LabelVersion, type Organ } from '../api'
import { may, type Context, type OpenPage } from '../context'
import type { SaveState } from '../drafts'
import { button, h, replace, select, swatch, title } from '../dom'
import { setKeys, type Key } from '../keys'
import { goToNext } from '../next'
import { ask, attempt, Banner, choose, say, showError } from '../notices'
import { StaleBase, Work } from '../task/work'
import { OPACITY, WINDOWS, type Location, type Tool, type View, type WindowName } from '../viewer'

const VIEWS: readonly [View, string, string][] = [
  ['all', 'All', 'm'],
  ['axial', 'Axial', 'a'],
  ['coronal', 'Coronal', 'c'],
  ['sagittal', 'Sagittal', 's'],
]
const WINDOW_NAMES = Object.keys(WINDOWS) as WindowName[]
const TOOLS: readonly [Tool, string, string][] = [
  ['look', 'Look', 'v'],
  ['pen', 'Pen', 'b'],
  ['eraser', 'Eraser', 'e'],
  ['fill', 'Fill', 'f'],
]
const PEN_SIZES = [1, 3, 5, 7, 9, 13, 17, 25]
const SAVED: Record<SaveState, string> = {
  clean: '',
  saving: 'Saving…',
  local: 'Draft kept in this browser',
  server: 'Draft saved',
}

export const openTask: OpenPage = async (main, context, id) => {
  const page = new TaskPage(main, context)
  await page.open(id)
  return page
}

class TaskPage {
  private work!: Work
  private organ: Organ
  private tool: Tool = 'look'
  private view: View = 'all'
  private window: WindowName = 'soft tissue'
  private size = 1
  private region = -1
  /** Something is being handed in: a second press of the key must not do it twice. */
  private busy = false
  private readonly overlays = { labels: true, attention: true, outline: false }
  private readonly errorType = new Map<string, string>()
  private readonly note = new Map<string, string>()
  private readonly readOnlyBanner = new Banner('warning')
  private readonly canvas = h('canvas', { id: 'views', 'aria-label': 'CT views', tabindex: '0' })
  private readonly head = h('div', { class: 'row case-head' })
  private readonly toolbar = h('div', { class: 'row toolbar', role: 'toolbar', 'aria-label': 'Viewing and drawing' })
  private readonly organList = h('ul', { class: 'organs', 'aria-label': 'Organs' })
  private readonly organDetail = h('section', { class: 'organ-detail', 'aria-label': 'Active organ' })
  private readonly overlayBox = h('section', { 'aria-label': 'Overlays' })
  private readonly regionList = h('ol', { class: 'regions', 'aria-label': 'Attended regions' })
  private readonly actions = h('section', { class: 'actions', 'aria-label': 'Hand in' })
  private readonly where = h('output', { class: 'where', 'aria-label': 'Crosshair' })
  private readonly saved = h('output', { class: 'saved', 'aria-label': 'Draft' })

  constructor(
    private readonly main: HTMLElement,
    private readonly context: Context,
  ) {
    this.organ = context.organs[0]!
  }

  async open(id: string): Promise<void> {
    replace(
      this.main,
      this.head,
      h(
        'div',
        { class: 'case' },
        h('aside', { class: 'left', 'aria-label': 'Organs and verdicts' }, this.organList, this.organDetail),
        h('div', { class: 'views' }, this.toolbar, h('div', { class: 'screen' }, this.canvas), h('div', { class: 'row foot' }, this.where, this.saved)),
        h('aside', { class: 'right', 'aria-label': 'Overlays, regions and actions' }, this.overlayBox, h('h2', {}, 'Attended regions'), this.regionList, this.actions),
      ),
    )
    replace(this.head, h('p', { role: 'status' }, 'Loading volumes…'))
    this.work = await Work.open(this.context, id, this.canvas, {
      changed: () => this.work && this.draw(),
      saved: (state, problem) => this.tellSaved(state, problem),
      leaseLost: (problem) => this.loseLease(problem),
      chooseDraft: () => this.chooseDraft(),
    })
    this.work.viewer.onLocation = (location) => this.tellLocation(location)
    this.chooseFirstOrgan()
    this.drawOverlays()
    this.drawRegions()
    this.setTool('look')
    this.draw()
    setKeys(this.keys())
    this.jumpTo(0)
    this.canvas.focus()
  }

  async close(): Promise<void> {
    this.readOnlyBanner.set()
    await this.work?.close()
  }

  /** The organ with most attention is the one to begin with. */
  private chooseFirstOrgan(): void {
    const first = [...this.work.detail.organs].sort((a, b) => b.attention_ml - a.attention_ml)[0]
    const organ = this.context.organs.find((one) => one.name === first?.organ)
    if (organ) this.organ = organ
    this.work.viewer.setPen(this.organ)
  }

  // --- drawing the page ---------------------------------------------------------------------------

  private draw(): void {
    this.drawHead()
    this.drawToolbar()
    this.drawOrgans()
    this.drawOrganDetail()
    this.drawActions()
  }

  private drawHead(): void {
    const task = this.work.detail
    replace(
      this.head,
      h('h1', {}, task.case_id),
      h('span', {}, task.dataset),
      h('span', {}, `rank ${task.rank}`),
      h('span', {}, `attention ${task.attention_ml.toFixed(1)} ml`),
      h('span', { class: `state ${task.state}`, role: 'status', 'aria-label': 'State' }, title(task.state)),
      task.second_reader && h('span', { class: 'state second_reading' }, 'second reader asked'),
      task.second_reader && this.question(),
    )
    const why = this.work.readOnly
    if (why === null) this.readOnlyBanner.set()
    else this.readOnlyBanner.set('Only for looking: ', typeof why === 'string' ? why : [why.message, ' ', why.parts().map(([, text]) => text).join(' ')])
  }

  /** What the first reader wants the second one to look at. */
  private question(): HTMLElement | null {
    const asked = this.work.detail.history.filter((one) => one.action === 'second reading').at(-1)
    const note = (asked?.detail as { note?: string } | undefined)?.note
    return asked && note ? h('q', { 'aria-label': `Asked by ${asked.who}` }, note) : null
  }

  private get locked(): boolean {
    return this.work.readOnly !== null
  }

  private drawToolbar(): void {
    const pressed = (element: HTMLButtonElement, on: boolean): HTMLButtonElement => {
      element.setAttribute('aria-pressed', String(on))
      return element
    }
    const enabled = (element: HTMLButtonElement, on: boolean): HTMLButtonElement => {
      element.disabled = !on
      return element
    }
    const group = (label: string, ...children: HTMLElement[]): HTMLElement =>
      h('div', { class: 'group', role: 'group', 'aria-label': label }, children)
    const size = h('input', {
      type: 'range',
      min: '0',
      max: PEN_SIZES.length - 1,
      value: PEN_SIZES.indexOf(this.size),
      'aria-label': 'Pen size',
      'aria-valuetext': `${this.size} voxels`,
      oninput: () => this.setSize(PEN_SIZES[Number(size.value)]!),
    })
    const protect = h('input', { type: 'checkbox', checked: this.work.viewer.protectOthers, onchange: () => this.setProtect(protect.checked) })
    replace(
      this.toolbar,
      group('View', ...VIEWS.map(([view, text, key]) => pressed(button(text, () => this.setView(view), { key }), this.view === view))),
      group('Window', ...WINDOW_NAMES.map((name, i) => pressed(button(name[0]!.toUpperCase() + name.slice(1), () => this.setWindow(name), { key: String(i + 1) }), this.window === name))),
      group(
        'Tool',
        ...TOOLS.map(([tool, text, key]) => pressed(enabled(button(text, () => this.setTool(tool), { key }), !this.locked || tool === 'look'), this.tool === tool)),
        enabled(button('Interpolate', () => this.interpolate(), { key: 'i' }), !this.locked),
      ),
      group(
        'Edits',
        enabled(button('Undo', () => this.undo(), { key: 'z' }), this.work.history.canUndo && !this.locked),
        enabled(button('Redo', () => this.redo(), { key: 'y' }), this.work.history.canRedo && !this.locked),
      ),
      h('label', { class: 'field inline' }, `Pen ${this.size}`, size),
      h('label', { class: 'field inline', title: 'Voxels of other organs stay as they are' }, protect, 'Keep other organs'),
    )
  }

  private drawOrgans(): void {
    const rows = this.context.organs.map((organ) => {
      const task = this.work.detail.organs.find((one) => one.organ === organ.name)
      const shown = h('input', {
        type: 'checkbox',
        checked: !this.hiddenOrgans.has(organ.label),
        'aria-label': `Show ${title(organ.name)}`,
        onchange: () => this.showOrgan(organ, shown.checked),
      })
      const active = organ === this.organ
      const pick = h(
        'button',
        { type: 'button', class: 'pick', 'aria-pressed': String(active), 'aria-label': `Draw ${title(organ.name)}`, onclick: () => this.setOrgan(organ) },
        swatch(organ.color),
        h('span', { class: 'name' }, title(organ.name)),
        h('span', { class: 'number' }, task && task.attention_ml > 0 ? `${task.attention_ml.toFixed(1)} ml` : ''),
      )
      const edited = this.work.changed.has(organ.name)
      const verdict = task?.verdict
      return h(
        'li',
        { class: active ? 'active' : '' },
        shown,
        pick,
        edited && h('span', { class: 'mark edited', title: 'drawn in' }, 'edited'),
        verdict && h('span', { class: `mark ${verdict}` }, verdict === 'confirmed' ? '✓ confirmed' : 'needs revision'),
      )
    })
    replace(this.organList, rows)
  }

  private readonly hiddenOrgans = new Set<number>()

  private drawOrganDetail(): void {
    const name = this.organ.name
    const task = this.work.detail.organs.find((one) => one.organ === name)
    const version = this.work.inForce(name)
    const types = this.context.errorTypes.map((one) => [one.code, `${one.group === 'ground_truth' ? 'Ground truth' : 'Pseudo label'}: ${one.title}`] as const)
    const chosen = this.errorType.get(name) ?? task?.error_type ?? ''
    const note = h('input', {
      value: this.note.get(name) ?? task?.note ?? '',
      maxlength: 2000,
      oninput: () => this.note.set(name, note.value),
    })
    const file = h('input', {
      type: 'file',
      accept: '.nii.gz,.gz',
      'aria-label': `Mask of ${title(name)} made elsewhere`,
      onchange: () => this.uploadMask(file),
    })
    replace(
      this.organDetail,
      h('h2', {}, swatch(this.organ.color), title(name)),
      h('p', { class: 'quiet' }, version ? describe(version) : 'No label yet'),
      version?.source === 'original' && h('p', {}, 'An original label stays in force: what you draw is kept beside it.'),
      !this.locked && !task && h('p', { class: 'quiet' }, 'This task asks for no verdict on it.'),
      !this.locked && task && [
        select('Error type', [['', 'none'], ...types], chosen, (code) => this.errorType.set(name, code)),
        h('label', { class: 'field' }, 'Note', note),
        h(
          'div',
          { class: 'row' },
          button('Confirm organ', () => this.judge('confirmed'), { key: 'Enter' }),
          button('Needs revision', () => this.judge('needs_revision'), { key: 'w' }),
        ),
      ],
      !this.locked && h('label', { class: 'field' }, 'Upload a mask made elsewhere', file),
    )
  }

  private drawOverlays(): void {
    const row = (name: 'labels' | 'attention', text: string, key: string, opacity: number): HTMLElement => {
      const on = h('input', { type: 'checkbox', checked: this.overlays[name], 'aria-label': `Show ${text.toLowerCase()}`, 'aria-keyshortcuts': key, onchange: () => this.setOverlay(name, on.checked) })
      const strength = h('input', {
        type: 'range',
        min: '0',
        max: '1',
        step: '0.05',
        value: opacity,
        'aria-label': `Opacity of ${text.toLowerCase()}`,
        oninput: () => this.work.viewer.setOpacity({ [name]: Number(strength.value) }),
      })
      return h('div', { class: 'row overlay' }, h('label', {}, on, text, h('kbd', { 'aria-hidden': 'true' }, key)), strength)
    }
    const outline = h('input', { type: 'checkbox', checked: this.overlays.outline, 'aria-keyshortcuts': 'o', onchange: () => this.setOverlay('outline', outline.checked) })
    const organs = this.work.detail.case.attention.map((one) => [one.organ, `${title(one.organ)} (${one.attention_ml.toFixed(1)} ml)`] as const)
    replace(
      this.overlayBox,
      h('h2', {}, 'Overlays'),
      row('labels', 'Labels', 'l', OPACITY.labels),
      h('label', { class: 'row' }, outline, 'Outlines only', h('kbd', { 'aria-hidden': 'true' }, 'o')),
      row('attention', 'Attention', 't', OPACITY.attention),
      select('Attention of', [['', 'all organs'], ...organs], '', (organ) => attempt(() => this.work.showAttention(organ))),
    )
  }

  private drawRegions(): void {
    const rows = this.work.regions.map((region, i) =>
      h(
        'li',
        {},
        h(
          'button',
          { type: 'button', 'aria-label': `Region ${i + 1}: ${title(region.organ)}, ${region.ml.toFixed(2)} ml`, onclick: () => this.jumpTo(i) },
          swatch(this.colour(region.organ)),
          h('span', { class: 'name' }, title(region.organ)),
          h('span', { class: 'number' }, `${region.ml.toFixed(2)} ml`),
        ),
      ),
    )
    replace(this.regionList, rows.length ? rows : h('li', { class: 'quiet' }, 'Nothing is attended in this case.'))
  }

  private drawActions(): void {
    const { context, work, locked } = this
    const download = h('a', { class: 'button', href: path(`cases/${encodeURIComponent(work.detail.case_id)}/download.zip`), download: '' }, 'Download for ITK-SNAP or Slicer')
    const changed = work.changed.size
    replace(
      this.actions,
      h('h2', {}, changed ? `Hand in (${changed} edited)` : 'Hand in'),
      !locked && [
        button('Submit revision', () => this.once(() => this.submit()), { key: 'Ctrl+Enter', kind: changed ? 'primary' : '' }),
        button('Confirm case', () => this.once(() => this.confirm()), { key: 'Shift+Enter', kind: changed ? '' : 'primary' }),
        button('Second reader', () => this.once(() => this.secondReader()), { key: 'r' }),
        button('Skip', () => this.once(() => this.skip()), { key: 'x' }),
        changed > 0 && button('Discard drawing', () => this.once(() => this.discard())),
      ],
      locked && FINISHED.has(work.detail.state) && may(context, 'manager', 'reader') && button('Reopen', () => attempt(() => this.reopen())),
      button('Next case', () => attempt(goToNext), { key: 'n', kind: locked ? 'primary' : '' }),
      download,
    )
  }

  private colour(organ: string): string {
    return this.context.organs.find((one) => one.name === organ)?.color ?? '#888888'
  }

  private tellLocation({ ijk, mm, hu, label }: Location): void {
    const organ = this.context.organs.find((one) => one.label === label)
    this.where.textContent = `voxel ${ijk.join(' ')} · ${mm.map((one) => one.toFixed(1)).join(' ')} mm · ${Math.round(hu)} HU${organ ? ` · ${title(organ.name)}` : ''}`
  }

  private tellSaved(state: SaveState, problem?: unknown): void {
    this.saved.textContent = SAVED[state]
    this.saved.dataset.state = state
    if (problem instanceof Problem) showError(problem)
  }

  private loseLease(problem: unknown): void {
    showError(problem)
    this.work.readOnly = problem instanceof Problem ? problem : 'The lease of this task was lost.'
    this.setTool('look')
    this.draw()
  }

  private async chooseDraft(): Promise<'browser' | 'server'> {
    const answer = await choose(
      'There are two drafts of this task',
      h('p', {}, 'This browser has strokes that the server never got, and the server has a newer draft from elsewhere. The one that you do not choose is dropped.'),
      [
        ['browser', 'Go on with this browser’s'],
        ['server', 'Go on with the server’s'],
      ],
    )
    return answer === 'server' ? 'server' : 'browser'
  }

  // --- what the user does -------------------------------------------------------------------------

  private setView(view: View): void {
    this.view = view
    this.work.viewer.setView(view)
    this.drawToolbar()
  }

  private setWindow(name: WindowName): void {
    this.window = name
    this.work.viewer.setWindow(name)
    this.drawToolbar()
  }

  private setTool(tool: Tool): void {
    if (this.locked && tool !== 'look') return
    this.tool = tool
    this.work.viewer.setTool(tool)
    this.drawToolbar()
  }

  private setSize(size: number): void {
    this.size = size
    this.work.viewer.setPenSize(size)
    this.toolbar.querySelector('.inline')?.firstChild?.replaceWith(`Pen ${size}`)
  }

  private stepSize(by: number): void {
    const at = Math.min(Math.max(PEN_SIZES.indexOf(this.size) + by, 0), PEN_SIZES.length - 1)
    this.setSize(PEN_SIZES[at]!)
    this.drawToolbar()
  }

  private setProtect(on: boolean): void {
    this.work.viewer.protectOthers = on
  }

  private setOrgan(organ: Organ): void {
    this.organ = organ
    this.work.viewer.setPen(organ)
    this.drawOrgans()
    this.drawOrganDetail()
  }

  private stepOrgan(by: number): void {
    const all = this.context.organs
    this.setOrgan(all[(all.indexOf(this.organ) + by + all.length) % all.length]!)
  }

  private showOrgan(organ: Organ, shown: boolean): void {
    if (shown) this.hiddenOrgans.delete(organ.label)
    else this.hiddenOrgans.add(organ.label)
    this.work.viewer.setOrganShown(organ.label, shown)
  }

  private setOverlay(name: 'labels' | 'attention' | 'outline', on: boolean): void {
    this.overlays[name] = on
    this.work.viewer.setOverlays({ [name]: on })
    this.drawOverlayStates()
  }

  /** Only the ticks: the sliders keep their places. */
  private drawOverlayStates(): void {
    const [labels, outline, attention] = this.overlayBox.querySelectorAll<HTMLInputElement>('input[type=checkbox]')
    if (labels) labels.checked = this.overlays.labels
    if (outline) outline.checked = this.overlays.outline
    if (attention) attention.checked = this.overlays.attention
  }

  private jumpTo(at: number): void {
    const region = this.work.regions[at]
    if (!region) return
    this.region = at
    this.work.viewer.jumpTo(region.centroid_mm)
    const organ = this.context.organs.find((one) => one.name === region.organ)
    if (organ) this.setOrgan(organ)
    ;[...this.regionList.children].forEach((item, i) => item.classList.toggle('active', i === at))
    this.regionList.children[at]?.scrollIntoView({ block: 'nearest' })
  }

  private interpolate(): void {
    if (this.locked) return
    const why = this.work.viewer.interpolate()
    if (why) say(why)
  }

  private undo(): void {
    if (!this.locked && !this.work.viewer.undo()) say('Nothing to undo')
  }

  private redo(): void {
    if (!this.locked && !this.work.viewer.redo()) say('Nothing to redo')
  }

  private judge(verdict: 'confirmed' | 'needs_revision'): void {
    const name = this.organ.name
    const task = this.work.detail.organs.find((one) => one.organ === name)
    if (this.locked || !task) return
    const errorType = verdict === 'confirmed' ? '' : (this.errorType.get(name) ?? task.error_type ?? '')
    attempt(async () => {
      await this.work.judge(name, verdict, errorType, this.note.get(name) ?? task.note)
      if (verdict === 'confirmed') this.goToUnjudged()
    })
  }

  /** After a verdict: the next organ of this task that has none. */
  private goToUnjudged(): void {
    const left = this.work.detail.organs.filter((one) => one.verdict === null).sort((a, b) => b.attention_ml - a.attention_ml)
    const organ = this.context.organs.find((one) => one.name === left[0]?.organ)
    if (organ) this.setOrgan(organ)
  }

  private uploadMask(input: HTMLInputElement): void {
    const file = input.files?.[0]
    if (!file) return
    input.value = ''
    const organ = this.organ.name
    this.once(() =>
      this.resolving(async () => {
        await this.work.uploadFile(organ, file)
        say(`The mask of ${title(organ)} is stored and shown. Submit the revision to end the task.`)
      }),
    )
  }

  private once(action: () => Promise<void>): void {
    if (this.busy || this.locked) return
    this.busy = true
    attempt(() =>
      action().finally(() => {
        this.busy = false
      }),
    )
  }

  /** Run something that uploads labels; where one has a stale base, ask what to do. */
  private async resolving(action: () => Promise<void>): Promise<void> {
    try {
      await action()
    } catch (error) {
      if (!(error instanceof StaleBase)) throw error
      await this.resolve(error)
    }
  }

  private async submit(): Promise<void> {
    if (this.locked) return
    if (this.work.changed.size === 0) {
      say('Nothing is drawn: confirm the case if it needs no revision.')
      return
    }
    await this.resolving(async () => {
      await this.work.submit()
      this.finish('Revision submitted')
    })
  }

  /** A stale base: nothing is lost, the annotator decides what the organ shall be. */
  private async resolve({ organ, current, submitted, problem }: StaleBase): Promise<void> {
    const row = (name: string, version: LabelVersion | null): HTMLElement =>
      h('tr', {}, h('th', { scope: 'row' }, name), h('td', {}, version ? describe(version) : 'unknown'))
    const answer = await choose(
      `Somebody else changed ${title(organ)} while you worked`,
      h(
        'div',
        {},
        h('p', {}, problem.parts().map(([, text]) => text).join(' ')),
        h('table', {}, h('tbody', {}, row('In force now', current), row('Yours, kept beside it', submitted))),
        h('p', {}, 'Nothing is lost: both versions are stored. Look at the one in force before you decide, or put your drawing on top of it.'),
      ),
      [
        ['theirs', 'Take theirs into my drawing'],
        ['mine', 'Keep mine on top of theirs'],
        ['', 'Decide later'],
      ],
    )
    if (!current || !answer) return
    if (answer === 'theirs') await this.work.takeOver(organ, current)
    this.work.rebase(organ, current.id)
    say(answer === 'theirs' ? `${title(organ)} is theirs now; go on drawing, then submit.` : 'Submit again to put yours into force.')
  }

  private async confirm(): Promise<void> {
    if (this.locked) return
    if (this.work.changed.size > 0) {
      say('You have drawn in this case: submit the revision, or discard the drawing first.')
      return
    }
    await this.work.confirm()
    this.finish(`Case ${title(this.work.detail.state)}`) // revised, where a label was handed in before
  }

  private async skip(): Promise<void> {
    if (this.locked) return
    const reason = await ask('Skip this case', 'Reason', 'Skip')
    if (reason === null) return
    await this.work.skip(reason)
    this.finish('Case skipped')
  }

  private async secondReader(): Promise<void> {
    if (this.locked) return
    const note = await ask('Ask a second reader', 'What shall the second reader look at?', 'Ask')
    if (note === null) return
    await this.resolving(async () => {
      await this.work.askSecondReader(note)
      this.finish('A second reader is asked')
    })
  }

  private async reopen(): Promise<void> {
    const reason = await ask('Reopen this task', 'Reason', 'Reopen')
    if (reason === null) return
    await this.work.reopen(reason)
    dispatchEvent(new HashChangeEvent('hashchange'))
  }

  private async discard(): Promise<void> {
    const kept = [...this.work.handedIn]
    const stays = kept.length > 0 && h('p', {}, `What is stored stays in force: ${kept.map(title).join(', ')}.`)
    const gone = h('p', {}, 'The draft goes from this browser and from the server.')
    const answer = await choose('Discard everything drawn in this case?', h('div', {}, gone, stays), [
      ['', 'Keep drawing'],
      ['discard', 'Discard'],
    ])
    if (answer !== 'discard') return
    await this.work.discard()
    if (kept.length > 0) dispatchEvent(new HashChangeEvent('hashchange')) // shows what is in force now
  }

  private finish(text: string): void {
    say(`${text}. n: next case`)
    this.setTool('look')
    this.draw()
    this.canvas.focus()
  }

  private keys(): Key[] {
    const key = (group: string, keys: string | string[], does: string, run: () => void): Key => ({ keys: [keys].flat(), does, group, run })
    const viewer = this.work.viewer
    const overlay = (name: 'labels' | 'attention' | 'outline') => () => this.setOverlay(name, !this.overlays[name])
    return [
      ...VIEWS.map(([view, text, name]) => key('Look', name, `view: ${text.toLowerCase()}`, () => this.setView(view))),
      ...WINDOW_NAMES.map((name, i) => key('Look', String(i + 1), `window: ${name}`, () => this.setWindow(name))),
      key('Look', ['ArrowUp', 'PageUp'], 'next slice (also the wheel)', () => viewer.scroll(1)),
      key('Look', ['ArrowDown', 'PageDown'], 'previous slice', () => viewer.scroll(-1)),
      key('Look', ['+', '='], 'zoom in (also Ctrl+wheel)', () => viewer.zoom(1)),
      key('Look', '-', 'zoom out', () => viewer.zoom(-1)),
      key('Look', 'l', 'labels on, off', overlay('labels')),
      key('Look', 'o', 'outlines only', overlay('outline')),
      key('Look', 't', 'attention on, off', overlay('attention')),
      { keys: ['Space'], does: 'bare CT while held', group: 'Look', run: () => viewer.peek(true), release: () => viewer.peek(false) },
      key('Look', 'j', 'next attended region', () => this.jumpTo(Math.min(this.region + 1, this.work.regions.length - 1))),
      key('Look', 'k', 'previous attended region', () => this.jumpTo(Math.max(this.region - 1, 0))),
      ...TOOLS.map(([tool, text, name]) => key('Draw', name, text.toLowerCase(), () => this.setTool(tool))),
      key('Draw', 'i', 'interpolate between the two slices drawn last', () => this.interpolate()),
      key('Draw', '.', 'next organ', () => this.stepOrgan(1)),
      key('Draw', ',', 'previous organ', () => this.stepOrgan(-1)),
      key('Draw', ']', 'larger pen', () => this.stepSize(1)),
      key('Draw', '[', 'smaller pen', () => this.stepSize(-1)),
      key('Draw', ['z', 'Ctrl+z'], 'undo', () => this.undo()),
      key('Draw', ['y', 'Ctrl+y', 'Ctrl+Shift+z'], 'redo', () => this.redo()),
      key('Hand in', 'Enter', 'confirm organ, go to the next', () => this.judge('confirmed')),
      key('Hand in', 'w', 'organ needs revision', () => this.judge('needs_revision')),
      key('Hand in', 'Shift+Enter', 'confirm case', () => this.once(() => this.confirm())),
      key('Hand in', 'Ctrl+Enter', 'submit revision', () => this.once(() => this.submit())),
      key('Hand in', 'r', 'ask a second reader', () => this.once(() => this.secondReader())),
      key('Hand in', 'x', 'skip', () => this.once(() => this.skip())),
      key('Hand in', 'n', 'next case', () => attempt(goToNext)),
    ]
  }
}

function describe(version: LabelVersion): string {
  const when = new Date(version.created_at)
  const date = Number.isNaN(when.getTime()) ? version.created_at : when.toLocaleString()
  return [version.source, version.author, `${version.volume_ml.toFixed(1)} ml`, date].filter(Boolean).join(', ')
}
