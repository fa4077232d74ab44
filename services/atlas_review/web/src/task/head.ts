/** The head of the task page: the case, the state of the task, and why it may be read-only. */

import { ORDERS } from '../api'
import { h, replace, title } from '../dom'
import { because } from '../reasons'
import { Banner } from '../notices'
import { describeReadOnly, secondReadersQuestion } from './texts'
import { LOOKING } from './work'
import type { Workspace } from './workspace'

export class Head {
  readonly element = h('div', { class: 'row case-head' }, h('p', { role: 'status' }, 'Loading volumes…'))
  private readonly readOnlyBanner = new Banner('warning')

  constructor(private readonly space: Workspace) {}

  draw(): void {
    const task = this.space.work.detail
    replace(
      this.element,
      h('h1', {}, task.case_id),
      h('span', {}, task.dataset),
      h('span', {}, `rank ${task.rank} by ${ORDERS[task.ranked_by].title}`),
      task.disagreement !== null && h('span', {}, `disagreement ${task.disagreement.toFixed(3)}`),
      h('span', {}, `attention ${task.attention_ml.toFixed(1)} ml`),
      because(task) && h('span', { 'aria-label': 'Why it is here' }, `because of ${because(task)}`),
      task.case.left_out > 0 && h('span', {}, `${Math.round(100 * task.case.left_out)} % of the body not looked at`),
      h('span', { class: `state ${task.state}`, role: 'status', 'aria-label': 'State' }, title(task.state)),
      this.space.work.readOnly === LOOKING && h('span', { class: 'state' }, 'only looking'),
      task.second_reader && h('span', { class: 'state second_reading' }, 'second reader asked'),
      task.second_reader && this.question(),
    )
    const why = this.space.work.readOnly
    if (why === null || why === LOOKING) this.readOnlyBanner.set()
    else this.readOnlyBanner.set('Read-only: ', describeReadOnly(why))
  }

  private question(): HTMLElement | null {
    const question = secondReadersQuestion(this.space.work.detail.history)
    return question && h('q', { 'aria-label': `Asked by ${question.by}` }, question.note)
  }

  close(): void {
    this.readOnlyBanner.set()
  }
}
