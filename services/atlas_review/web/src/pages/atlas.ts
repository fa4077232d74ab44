import { t } from '../i18n'
import { CASE_STATES, get, type Statistics } from '../api'
import { attentionSizes, bars, organVolumes } from '../charts'
import { colourOf, type OpenPage } from '../context'
import { h, replace, tableHead, title } from '../dom'

export const openAtlas: OpenPage = async (main, context) => {
  const statistics = await get<Statistics>('statistics')
  const states = CASE_STATES.flatMap((state): [string, number, string][] => {
    const cases = statistics.cases_by_state[state]
    return cases === undefined ? [] : [[title(state), cases, state]]
  })
  replace(
    main,
    h('h1', {}, t('State of the atlas')),
    h(
      'div',
      { class: 'charts' },
      bars(t('Cases by state'), states),
      attentionSizes(statistics.attention_by_dataset, statistics.top_share),
      organVolumes(statistics.organ_volumes, (organ) => colourOf(context, organ)),
      throughput(statistics.throughput),
    ),
  )
  return {}
}

const MINUTE_S = 60

function throughput(rows: Statistics['throughput']): HTMLElement {
  const minutes = (seconds: number): string => (seconds / MINUTE_S).toFixed(1)
  const heads = [t('Annotator'), t('Tasks'), t('Hours'), t('Minutes a task'), t('Busiest day')]
  const row = ({ annotator, tasks, seconds, by_day }: Statistics['throughput'][number]): HTMLElement => {
    const best = [...by_day].sort((a, b) => b.tasks - a.tasks)[0]
    return h(
      'tr',
      {},
      h('td', {}, annotator),
      h('td', { class: 'number' }, tasks),
      h('td', { class: 'number' }, (seconds / MINUTE_S / MINUTE_S).toFixed(2)),
      h('td', { class: 'number' }, tasks ? minutes(seconds / tasks) : '–'),
      h('td', {}, best ? t('{tasks} on {day}', best) : '–'),
    )
  }
  const table = h(
    'table',
    { 'aria-label': t('Annotator throughput') },
    tableHead(heads, [t('Tasks'), t('Hours'), t('Minutes a task')]),
    h('tbody', {}, rows.map(row)),
  )
  return h('figure', {}, h('figcaption', {}, t('Annotator throughput')), rows.length ? table : h('p', {}, t('No task is finished yet.')))
}
