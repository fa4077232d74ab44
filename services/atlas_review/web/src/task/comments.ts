/** What people say about the case: first and second readers talk here. */

import { call, get, type Comment } from '../api'
import { button, h, replace, select, title } from '../dom'
import { attempt } from '../notices'
import type { Workspace } from './workspace'

type About = 'case' | 'organ' | 'here'

export class Comments {
  readonly element = h('section', { class: 'comments', 'aria-label': 'Comments' })
  private comments: Comment[] = []
  private about: About = 'case'
  private readonly text = h('textarea', { rows: 2, maxlength: 2000, 'aria-label': 'Comment' })
  private readonly list = h('ol', { 'aria-label': 'Comments' })
  private readonly aboutField = select('About', [['case', 'the case'], ['organ', 'the active organ'], ['here', 'the organ, here']], 'case', (about) => {
    this.about = about as About
  })

  constructor(private readonly space: Workspace) {
    this.text.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) this.send()
    })
  }

  /** Fetch what was said, and show it. */
  async load(): Promise<void> {
    this.comments = (await get<{ comments: Comment[] }>(this.address)).comments
    this.draw()
  }

  private get address(): string {
    return `cases/${encodeURIComponent(this.space.work.detail.case_id)}/comments`
  }

  private draw(): void {
    replace(this.list, this.comments.map((one) => this.row(one)))
    if (this.element.hasChildNodes()) return
    const send = h('div', { class: 'row' }, this.aboutField, button('Comment', () => this.send()))
    replace(this.element, h('h2', {}, 'Comments'), this.list, this.text, send)
  }

  private row({ author, text, organ, voxel_ijk, created_at }: Comment): HTMLElement {
    const place = voxel_ijk && button('show', () => this.show(organ, voxel_ijk), { label: `Show where ${author} means` })
    const when = h('time', { datetime: created_at }, new Date(created_at).toLocaleString())
    return h('li', {}, h('p', { class: 'quiet' }, h('strong', {}, author), ' ', when, organ && ` · ${title(organ)} `, place), h('p', {}, text))
  }

  private show(organ: string | null, voxel: [number, number, number]): void {
    this.space.activateNamed(organ ?? undefined)
    this.space.work.viewer.jumpToVoxel(voxel)
  }

  private send(): void {
    const text = this.text.value.trim()
    if (!text) return
    const { organ, work } = this.space
    const about = this.about === 'case' ? {} : { organ: organ.name, ...(this.about === 'here' && { voxel_ijk: work.viewer.here.ijk }) }
    attempt(async () => {
      await call('POST', this.address, { text, ...about })
      this.text.value = ''
      await this.load()
    })
  }
}
