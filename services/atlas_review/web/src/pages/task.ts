/** The page of one task: the parts in `../task`, laid out and wired to each other. */

import { t } from '../i18n'
import type { Context, OpenPage, Page } from '../context'
import { h, replace } from '../dom'
import { setKeys } from '../keys'
import { attempt, say, showError } from '../notices'
import { mostUrgent } from '../task/urgency'
import { chooseDraft } from '../task/dialogs'
import { Comments } from '../task/comments'
import { Foot } from '../task/foot'
import { HandIn } from '../task/hand-in'
import { Head } from '../task/head'
import { taskKeys } from '../task/keys'
import { OrganList } from '../task/organ-list'
import { OrganPanel } from '../task/organ-panel'
import { Overlays } from '../task/overlays'
import { RegionList } from '../task/region-list'
import { Shapes } from '../task/shapes'
import { Reshape } from '../task/reshape'
import { recall, remember } from '../task/remembered'
import { Toolbar } from '../task/toolbar'
import { Work } from '../task/work'
import { Workspace } from '../task/workspace'

export const openTask: OpenPage = async (main, context, id) => {
  const page = new TaskPage(context)
  replace(main, page.layout())
  await page.open(id)
  return page
}

class TaskPage implements Page {
  private readonly space: Workspace
  private readonly head: Head
  private readonly toolbar: Toolbar
  private readonly organs: OrganList
  private readonly organPanel: OrganPanel
  private readonly overlays: Overlays
  private readonly regions: RegionList
  private readonly shapes: Shapes
  private readonly handIn: HandIn
  private readonly foot: Foot
  private readonly comments: Comments
  private readonly reshape: Reshape
  private readonly shown = new AbortController()
  private readonly canvas = h('canvas', { id: 'views', role: 'application', 'aria-label': t('CT views'), tabindex: '0' })

  constructor(private readonly context: Context) {
    const space = (this.space = new Workspace(context))
    this.head = new Head(space)
    this.reshape = new Reshape(space)
    this.toolbar = new Toolbar(space, this.reshape)
    this.organs = new OrganList(space)
    this.overlays = new Overlays(space)
    this.regions = new RegionList(space)
    this.shapes = new Shapes(space, this.regions)
    this.handIn = new HandIn(space, (text) => this.finish(text), (organ, url) => this.shapes.differences.showTheirs(organ, url))
    this.organPanel = new OrganPanel(space, (organ, file) => this.handIn.uploadMask(organ, file))
    this.foot = new Foot(context.organs)
    this.comments = new Comments(space)
  }

  layout(): HTMLElement[] {
    const aside = (side: string, label: string, ...children: HTMLElement[]): HTMLElement =>
      h('section', { class: `side ${side}`, 'aria-label': label }, ...children)
    const views = h('div', { class: 'views' }, this.toolbar.element, h('div', { class: 'screen' }, this.canvas), this.foot.element)
    return [
      this.head.element,
      h(
        'div',
        { class: 'case' },
        aside('left', t('Organs and verdicts'), this.organs.element, this.organPanel.element, this.reshape.element),
        views,
        aside('right', t('Overlays, regions and actions'), this.overlays.element, h('h2', {}, t('Attended regions')), this.regions.element, this.shapes.element, this.handIn.element, this.comments.element),
      ),
    ]
  }

  async open(id: string): Promise<void> {
    const { space } = this
    space.work = await Work.open(this.context, id, this.canvas, {
      changed: () => this.draw(),
      loading: (share) => this.foot.showLoading(share),
      saved: (state, problem) => this.foot.showSaved(state, problem),
      leaseLost: (problem) => this.loseLease(problem),
      chooseDraft,
    })
    space.work.viewer.onLocation = (location) => this.foot.showLocation(location)
    space.work.viewer.onHover = (location) => this.foot.showPointer(location)
    space.work.viewer.onSeed = (voxel) => this.reshape.grow(voxel)
    space.work.viewer.onSize = (steps) => this.toolbar.stepPenSize(steps)
    space.work.viewer.onWindow = () => this.toolbar.forgetWindow()
    space.activateNamed(mostUrgent(space.work.detail.organs)?.organ)
    space.onOrgan = () => this.drawOrgans()
    this.overlays.draw()
    this.regions.draw()
    this.toolbar.setTool('look')
    this.draw()
    const { toolbar, organPanel, overlays, regions, shapes, handIn, reshape } = this
    setKeys(taskKeys({ space, toolbar, organPanel, overlays, regions, shapes, handIn, reshape }))
    this.regions.jumpTo(0)
    this.lookAgain(id)
    attempt(() => this.comments.load())
    this.canvas.focus()
  }

  /** As before a reload, and kept for the next one. */
  private lookAgain(id: string): void {
    const { space, toolbar } = this
    const before = recall(id)
    if (before) {
      space.activateNamed(before.organ)
      toolbar.restore(before)
      space.work.viewer.scene = before.scene
    }
    addEventListener('pagehide', () => remember({ task: id, scene: space.work.viewer.scene, organ: space.organ.name, ...toolbar.state }), { signal: this.shown.signal })
  }

  async close(): Promise<void> {
    this.shown.abort()
    this.head.close()
    await this.space.work?.close()
  }

  /** Everything that changes with the work; while it is being opened there is nothing to draw. */
  private draw(): void {
    if (!this.space.work) return
    this.head.draw()
    this.toolbar.draw()
    this.drawOrgans()
    this.handIn.draw()
    this.reshape.draw()
  }

  private drawOrgans(): void {
    this.organs.draw()
    this.organPanel.draw()
    this.shapes.draw()
  }

  private loseLease(problem: unknown): void {
    showError(problem)
    if (!this.space.work) return // still being opened: it will open read-only
    this.toolbar.setTool('look')
    this.draw()
  }

  private finish(text: string): void {
    say(t('{text}. n: next case', { text }))
    this.toolbar.setTool('look')
    this.draw()
    this.canvas.focus()
  }
}
