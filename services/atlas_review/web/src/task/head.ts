/** The head of the task page: the case, the state of the task, and why it may be read-only. */

import { t } from '../i18n'
import { ORDERS } from '../api'
import { h, replace, title } from '../dom'
import { because } from '../reasons'
import { Banner } from '../notices'
import { describeReadOnly, secondReadersQuestion } from './texts'
import { LOOKING } from './work'
import type { Workspace } from './workspace'

export class Head {
  readonly element = h('div', { class: 'row case-head' }, h('p', { role: 'status' }, t('Loading volumes…')))
  private readonly readOnlyBanner = new Banner('warning')

  constructor(private readonly space: Workspace) {}

  draw(): void {
    const task = this.space.work.detail
    replace(
      this.element,
      h('h1', {}, task.case_id),
      h('span', {}, task.dataset),
      h('span', {}, t('rank {rank} by {order}', { rank: task.rank, order: t(ORDERS[task.ranked_by].title) })),
      task.disagreement !== null && h('span', {}, t('disagreement {value}', { value: task.disagreement.toFixed(3) })),
      h('span', {}, t('attention {ml} ml', { ml: task.attention_ml.toFixed(1) })),
      because(task) && h('span', { role: 'note', 'aria-label': t('Why it is here') }, t('because of {organs}', { organs: because(task) })),
      task.case.left_out > 0 && h('span', {}, t('{percent} % of the body not looked at', { percent: Math.round(100 * task.case.left_out) })),
      h('span', { class: `state ${task.state}`, role: 'status', 'aria-label': t('State') }, title(task.state)),
      this.space.work.readOnly === LOOKING && h('span', { class: 'state' }, t('only looking')),
      task.second_reader && h('span', { class: 'state second_reading' }, t('second reader asked')),
      task.second_reader && this.question(),
    )
    const why = this.space.work.readOnly
    if (why === null || why === LOOKING) this.readOnlyBanner.set()
    else this.readOnlyBanner.set(t('Read-only: '), describeReadOnly(why))
  }

  private question(): HTMLElement | null {
    const question = secondReadersQuestion(this.space.work.detail.history)
    return question && h('q', { role: 'note', 'aria-label': t('Asked by {name}', { name: question.by }) }, question.note)
  }

  close(): void {
    this.readOnlyBanner.set()
  }
}
