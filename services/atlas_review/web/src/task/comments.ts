/** What people say about the case: first and second readers talk here. */

import { t, when } from '../i18n'
import { call, get, type Comment } from '../api'
import { button, h, replace, select, title } from '../dom'
import { attempt } from '../notices'
import type { Workspace } from './workspace'

type About = 'case' | 'organ' | 'here'

export class Comments {
  readonly element = h('section', { class: 'comments', 'aria-label': t('Comments') })
  private comments: Comment[] = []
  private about: About = 'case'
  private readonly text = h('textarea', { rows: 2, maxlength: 2000, 'aria-label': t('Comment') })
  private readonly list = h('ol', { 'aria-label': t('Comments') })
  private readonly aboutField = select(t('About'), [['case', t('the case')], ['organ', t('the active organ')], ['here', t('the organ, here')]], 'case', (about) => {
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
    const send = h('div', { class: 'row' }, this.aboutField, button(t('Comment'), () => this.send()))
    replace(this.element, h('h2', {}, t('Comments')), this.list, this.text, send)
  }

  private row({ author, text, organ, voxel_ijk, created_at }: Comment): HTMLElement {
    const place = voxel_ijk && button(t('show'), () => this.show(organ, voxel_ijk), { label: t('Show where {author} means', { author }) })
    const said = h('time', { datetime: created_at }, when(created_at))
    return h('li', {}, h('p', { class: 'quiet' }, h('strong', {}, author), ' ', said, organ && ` · ${title(organ)} `, place), h('p', {}, text))
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
