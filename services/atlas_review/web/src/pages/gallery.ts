import { t } from '../i18n'
import { call, CASE_STATES, get, path, query, type CaseBrief } from '../api'
import type { OpenPage } from '../context'
import { button, h, replace, select, title } from '../dom'
import { setKeys } from '../keys'
import { attempt, say } from '../notices'

const PAGE = 100
/** Sheets fetched before they are shown, so that the next key shows a picture at once. */
const PREFETCHED = 2

export const openGallery: OpenPage = async (main) => {
  const gallery = new Gallery(main)
  setKeys([
    { keys: ['ArrowRight', 'j'], does: t('next case'), group: t('Gallery'), run: () => gallery.step(1) },
    { keys: ['ArrowLeft', 'k'], does: t('previous case'), group: t('Gallery'), run: () => gallery.step(-1) },
    { keys: ['Home'], does: t('first case'), group: t('Gallery'), run: () => gallery.select(0) },
    { keys: ['Enter'], does: t('open the case'), group: t('Gallery'), run: () => gallery.open() },
    { keys: ['f'], does: t('flag this case, or remove the flag'), group: t('Gallery'), run: () => attempt(() => gallery.flag()) },
  ])
  await gallery.reload()
  return gallery
}

const sheetOf = (one: CaseBrief): string => path(`cases/${encodeURIComponent(one.id)}/contact-sheet.png`)

class Gallery {
  private readonly filter = { dataset: '', state: '', flagged: '' }
  private cases: CaseBrief[] = []
  private total = 0
  private at = 0
  /** Number of the list that is shown: an older one stops loading. */
  private loading = 0
  /** Datasets seen so far, which the filter offers. */
  private readonly datasets = new Set<string>()
  private readonly bar = h('div', { class: 'row filters', role: 'search', 'aria-label': t('Filters') })
  private readonly list = h('div', { class: 'strip', role: 'listbox', 'aria-label': t('Cases'), tabindex: '0' })
  private readonly sheet = h('img', { class: 'sheet', alt: '' })
  private readonly caption = h('p', { class: 'row', role: 'status', 'aria-label': t('Shown case') })
  private readonly flagButton = button(t('Flag'), () => attempt(() => this.flag()), { key: 'f' })

  constructor(main: HTMLElement) {
    replace(
      main,
      h('h1', {}, t('Gallery')),
      this.bar,
      h('div', { class: 'gallery' }, this.list, h('figure', {}, this.caption, this.flagButton, this.sheet)),
    )
  }

  async reload(): Promise<void> {
    this.cases = []
    this.at = 0
    await this.more()
    this.drawFilters()
    this.drawList()
    this.select(0)
  }

  private async more(): Promise<void> {
    const page = await get<{ total: number; cases: CaseBrief[] }>(
      `cases${query({ ...this.filter, offset: this.cases.length, limit: PAGE })}`,
    )
    this.total = page.total
    this.cases.push(...page.cases)
    page.cases.forEach((one) => this.datasets.add(one.dataset))
  }

  private drawFilters(): void {
    const change = (part: Partial<Gallery['filter']>): void => {
      Object.assign(this.filter, part)
      attempt(() => this.reload())
    }
    const all = ['', t('all')] as const
    replace(
      this.bar,
      select(t('Dataset'), [all, ...[...this.datasets].sort().map((d) => [d, d] as const)], this.filter.dataset, (dataset) => change({ dataset })),
      select(t('State'), [all, ...CASE_STATES.map((s) => [s, title(s)] as const)], this.filter.state, (state) => change({ state })),
      select(t('Flag'), [all, ['true', t('flagged')], ['false', t('not flagged')]], this.filter.flagged, (flagged) => change({ flagged })),
    )
  }

  private drawList(): void {
    replace(
      this.list,
      this.cases.map((one, i) =>
        h(
          'button',
          { type: 'button', role: 'option', class: 'thumb', tabindex: '-1', 'aria-label': one.id, onclick: () => this.select(i) },
          h('img', { alt: '' }),
          h('span', { class: 'name' }, one.id),
        ),
      ),
    )
    this.markFlags()
    void this.loadThumbs(++this.loading)
  }

  /** One picture after the other: a sheet may have to be rendered first, and the keys must not wait for it. */
  private async loadThumbs(mine: number): Promise<void> {
    for (const [i, one] of this.cases.entries()) {
      if (mine !== this.loading) return
      const image = this.list.children[i]?.querySelector('img')
      if (!image) return
      image.src = sheetOf(one)
      await image.decode().catch(() => {}) // without a sheet only the name is shown
    }
  }

  close(): void {
    this.loading++
  }

  private markFlags(): void {
    this.cases.forEach((one, i) => this.list.children[i]?.classList.toggle('flagged', one.flagged))
  }

  step(by: number): void {
    this.select(this.at + by)
  }

  select(at: number): void {
    const one = this.cases[at]
    if (!one) {
      if (this.cases.length === 0) replace(this.caption, t('No cases match these filters.'))
      this.sheet.hidden = this.cases.length === 0
      this.flagButton.hidden = this.sheet.hidden
      return
    }
    this.at = at
    ;[...this.list.children].forEach((thumb, i) => thumb.setAttribute('aria-selected', String(i === at)))
    this.list.children[at]?.scrollIntoView({ block: 'nearest', inline: 'nearest' })
    this.sheet.hidden = this.flagButton.hidden = false
    this.sheet.src = sheetOf(one)
    this.sheet.alt = t('Contact sheet of {case}', { case: one.id })
    this.describe(one)
    this.cases.slice(at + 1, at + 1 + PREFETCHED).forEach((next) => {
      new Image().src = sheetOf(next)
    })
    if (at + PREFETCHED >= this.cases.length && this.cases.length < this.total) attempt(() => this.extend())
  }

  /** To the page of the shown case, where there is one. */
  open(): void {
    const task = this.cases[this.at]?.task_id
    if (task) location.hash = `#/task/${task}`
  }

  private async extend(): Promise<void> {
    await this.more()
    this.drawList()
    this.list.children[this.at]?.setAttribute('aria-selected', 'true')
  }

  private describe(one: CaseBrief): void {
    replace(
      this.caption,
      h('strong', {}, one.id),
      h('span', {}, one.dataset),
      one.state && h('span', { class: `state ${one.state}` }, title(one.state)),
      one.task_id !== null && h('a', { class: 'button', href: `#/task/${one.task_id}`, title: t('Open the case (key Enter)') }, t('Open')),
      h('span', {}, t('{at} of {total}', { at: this.at + 1, total: this.total })),
      one.flagged && h('span', { class: 'state skipped' }, t('flagged')),
    )
    this.flagButton.setAttribute('aria-pressed', String(one.flagged))
  }

  async flag(): Promise<void> {
    const one = this.cases[this.at]
    if (!one) return
    const result = await call<{ flagged: boolean }>('PUT', `cases/${encodeURIComponent(one.id)}/flag`, { flagged: !one.flagged })
    one.flagged = result?.flagged ?? !one.flagged
    this.markFlags()
    this.describe(one)
    say(one.flagged ? t('{case} flagged', { case: one.id }) : t('{case} no longer flagged', { case: one.id }))
  }
}
