import { t } from '../i18n'
import { call, FINISHED, get, ORDERS, query, TASK_STATES, type Queue, type Task } from '../api'
import { colourOf, may, type Context, type OpenPage } from '../context'
import { button, h, replace, select, swatch, tableHead, title } from '../dom'
import { setKeys } from '../keys'
import { goToNext, keepFilter, keptFilter } from '../next'
import { attempt, say } from '../notices'
import { drivers, weightOf } from '../reasons'

const PAGE = 50

export const openQueue: OpenPage = async (main, context) => {
  const filter = { dataset: '', organ: '', ...keptFilter(), state: '' }
  let offset = 0
  const content = h('div', {})
  const reload = async (): Promise<void> => {
    keepFilter({ dataset: filter.dataset, organ: filter.organ })
    const queue = await get<Queue>(`queue${query({ ...filter, offset, limit: PAGE })}`)
    replace(content, progress(queue.counts), filters(queue), table(queue.tasks, context), pages(queue.total))
  }
  const change = (part: Partial<typeof filter>): void => {
    Object.assign(filter, part)
    offset = 0
    attempt(reload)
  }
  const filters = (queue: Queue): HTMLElement =>
    h(
      'div',
      { class: 'row filters', role: 'search', 'aria-label': t('Filters') },
      select(t('Dataset'), [['', t('all')], ...queue.datasets.map((d) => [d, d] as const)], filter.dataset, (dataset) => change({ dataset })),
      select(t('Organ'), [['', t('all')], ...context.organs.map((o) => [o.name, title(o.name)] as const)], filter.organ, (organ) => change({ organ })),
      select(t('State'), [['', t('all')], ...TASK_STATES.map((s) => [s, title(s)] as const)], filter.state, (state) => change({ state })),
      button(t('Next case'), () => attempt(goToNext), { key: 'n', kind: 'primary' }),
    )
  const pages = (total: number): HTMLElement => {
    const go = (step: number): void => {
      offset += step
      attempt(reload)
    }
    return h(
      'nav',
      { class: 'row', 'aria-label': t('Pages') },
      offset > 0 && button(t('Earlier'), () => go(-PAGE)),
      h('span', {}, total ? t('{from}–{to} of {total}', { from: offset + 1, to: Math.min(offset + PAGE, total), total }) : t('no tasks match these filters')),
      offset + PAGE < total && button(t('Later'), () => go(PAGE)),
    )
  }
  replace(main, h('h1', {}, t('Queue')), content, may(context, 'manager') && fillForm(reload))
  setKeys([{ keys: ['n'], does: t('next case'), group: t('Queue'), run: () => attempt(goToNext) }])
  await reload()
  return {}
}

function progress(counts: Record<string, number>): HTMLElement {
  const all = Object.values(counts).reduce((sum, n) => sum + n, 0)
  const done = Object.entries(counts).reduce((sum, [state, n]) => sum + (FINISHED.has(state) ? n : 0), 0)
  return h(
    'section',
    { class: 'progress', 'aria-label': t('Progress') },
    h('progress', { max: Math.max(all, 1), value: done, 'aria-label': t('Finished tasks') }),
    h('strong', {}, t('{done} of {all} done', { done, all })),
    TASK_STATES.map((state) => h('span', { class: `state ${state}` }, `${title(state)} ${counts[state] ?? 0}`)),
  )
}

function table(tasks: Task[], context: Context): HTMLElement {
  const row = (task: Task): HTMLElement =>
    h(
      'tr',
      {},
      h('td', { class: 'number' }, task.rank),
      h('td', {}, h('a', { href: `#/task/${task.id}` }, task.case_id)),
      h('td', {}, task.dataset),
      h('td', { class: 'number' }, task.disagreement?.toFixed(3) ?? '–'),
      h('td', { class: 'number' }, task.attention_ml.toFixed(1)),
      h('td', { title: t('by {order}', { order: t(ORDERS[task.ranked_by].title) }) }, reasons(task, context)),
      h('td', {}, h('span', { class: `state ${task.state}` }, title(task.state)), task.second_reader && task.state === 'leased' ? t(' second reader') : null),
      h('td', {}, task.assignee ?? ''),
    )
  const heads = [t('Rank'), t('Case'), t('Dataset'), t('Disagreement'), t('Attention, ml'), t('Because of'), t('State'), t('Annotator')]
  return h(
    'table',
    { 'aria-label': t('Tasks') },
    tableHead(heads, [t('Rank'), t('Disagreement'), t('Attention, ml')]),
    h('tbody', {}, tasks.map(row)),
  )
}

/** The organs that drive the case's place, in their colours, with what each adds to it. */
function reasons(task: Task, context: Context): HTMLElement[] {
  return drivers(task).map((one) =>
    h('span', { class: 'organ-tag' }, swatch(colourOf(context, one.organ)), `${title(one.organ)} ${weightOf(task, one)}`),
  )
}

/** For managers: open tasks for the top of the ranking. */
function fillForm(reload: () => Promise<void>): HTMLElement {
  const amount = h('input', { type: 'number', min: '0', step: 'any', value: '5', required: true, 'aria-label': t('Amount') })
  const unit = h(
    'select',
    { 'aria-label': t('Unit') },
    h('option', { value: 'share' }, t('% of the ranking')),
    h('option', { value: 'count' }, t('cases')),
    h('option', { value: 'minutes' }, t('minutes of work')),
  )
  const order = h(
    'select',
    { 'aria-label': t('Order') },
    Object.entries(ORDERS).map(([by, order]) => h('option', { value: by }, t('by {order}', { order: t(order.title) }))),
  )
  const submit = (event: Event): void => {
    event.preventDefault()
    const value = Number(amount.value)
    attempt(async () => {
      const body = { [unit.value]: unit.value === 'share' ? value / 100 : value, by: order.value }
      const result = await call<{ created: number; already: number }>('POST', 'queue', body)
      if (result) say(t('{created} tasks opened, {already} were there already.', result))
      await reload()
    })
  }
  return h(
    'form',
    { class: 'row', onsubmit: submit, 'aria-label': t('Open tasks') },
    h('span', {}, t('Open tasks for the top')),
    amount,
    unit,
    order,
    h('button', {}, t('Open tasks')),
  )
}
