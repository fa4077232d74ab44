/** The charts of the atlas page, as hand-written SVG: each value is also in a title or a table. */

import { t } from './i18n'
import { h, svg, title } from './dom'
import type { Statistics } from './api'

const WIDTH = 640

/** Nice upper end and step of an axis from zero to at least `most`. */
function scale(most: number): { end: number; step: number } {
  const rough = Math.max(most, 1e-9) / 4
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) ?? 10 * power
  return { end: step * Math.ceil(most / step || 1), step }
}

function ticks(end: number, step: number): number[] {
  return Array.from({ length: Math.round(end / step) + 1 }, (_, i) => i * step)
}

function figure(caption: string, height: number, label: string, ...children: SVGElement[]): HTMLElement {
  return h(
    'figure',
    {},
    h('figcaption', {}, caption),
    svg('svg', { viewBox: `0 0 ${WIDTH} ${height}`, role: 'img', 'aria-label': label }, ...children),
  )
}

/** A vertical axis with its grid lines; `y` maps a value to a height. */
function axis(left: number, end: number, step: number, y: (value: number) => number): SVGElement {
  const lines = ticks(end, step).map((value) => [
    svg('line', { class: 'grid', x1: left, x2: WIDTH, y1: y(value), y2: y(value) }),
    svg('text', { class: 'tick', x: left - 6, y: y(value) + 4, 'text-anchor': 'end' }, format(value)),
  ])
  return svg('g', {}, lines)
}

function format(value: number): string {
  return Number(value.toPrecision(6)).toLocaleString('en', { maximumFractionDigits: 3 })
}

/** Horizontal bars with names and counts. */
export function bars(caption: string, rows: [name: string, value: number, kind?: string][]): HTMLElement {
  const [left, row] = [140, 26]
  const most = Math.max(...rows.map(([, value]) => value), 1)
  const width = (value: number): number => ((WIDTH - left - 70) * value) / most
  const marks = rows.map(([name, value, kind], i) =>
    svg(
      'g',
      { transform: `translate(0 ${i * row})` },
      svg('text', { x: left - 8, y: 17, 'text-anchor': 'end' }, name),
      svg('rect', { class: `bar ${kind ?? ''}`, x: left, y: 4, width: Math.max(width(value), 1), height: row - 8, rx: 2 }),
      svg('text', { class: 'tick', x: left + width(value) + 6, y: 17 }, format(value)),
    ),
  )
  return figure(caption, rows.length * row + 4, caption, ...marks)
}

/** Fig. 4: one point per case, one column per dataset; the top share is marked. */
export function attentionSizes(data: Statistics['attention_by_dataset'], share: number): HTMLElement {
  const [left, top, height, foot] = [60, 8, 240, 34]
  const sets = Object.entries(data).filter(([, cases]) => cases.length > 0)
  const { end, step } = scale(Math.max(...sets.flatMap(([, cases]) => cases.map((one) => one.attention_ml)), 0))
  const y = (value: number): number => top + height * (1 - value / end)
  const column = (WIDTH - left) / Math.max(sets.length, 1)
  const point = (x: number, ml: number, marked: boolean, name: string): SVGElement =>
    svg('circle', { class: marked ? 'point marked' : 'point', cx: x, cy: y(ml), r: marked ? 4 : 2.5 }, svg('title', {}, `${name}: ${format(ml)} ml`))
  const columns = sets.map(([name, cases], i) => {
    const sorted = [...cases].sort((a, b) => b.attention_ml - a.attention_ml)
    const x = (n: number): number => left + column * (i + 0.1 + (0.8 * (n + 0.5)) / sorted.length)
    return svg(
      'g',
      {},
      sorted.map((one, n) => point(x(n), one.attention_ml, one.in_top_share, one.case_id)),
      svg('text', { x: left + column * (i + 0.5), y: top + height + 20, 'text-anchor': 'middle' }, `${name} (${cases.length})`),
    )
  })
  const percent = format(share * 100)
  const caption = t('Attention size per dataset, ml; the top {percent} % of the ranking in red (Fig. 4)', { percent })
  return figure(caption, top + height + foot, caption, axis(left, end, step, y), ...columns)
}

/** Powers of ten around some values, with 1-2-5 steps between them as ticks. */
function decades(values: number[]): { low: number; high: number; ticks: number[] } {
  const positive = values.filter((value) => value > 0)
  const low = 10 ** Math.floor(Math.log10(Math.min(...positive, 10)))
  const high = Math.max(...positive, low * 10)
  const powers = Array.from({ length: Math.ceil(Math.log10(high / low)) + 1 }, (_, i) => low * 10 ** i)
  return { low, high, ticks: powers.flatMap((power) => [power, 2 * power, 5 * power]).filter((tick) => tick <= high) }
}

/** Fig. 1b and 9: quartiles, median, range and every case; logarithmic, as a liver stands beside a gall bladder. */
export function organVolumes(data: Statistics['organ_volumes'], colour: (organ: string) => string): HTMLElement {
  const [left, row, top, foot] = [110, 34, 6, 26]
  const organs = Object.entries(data).filter(([, one]) => one.count > 0)
  const { low, high, ticks } = decades(organs.flatMap(([, one]) => one.values.concat(one.q1, one.q3)))
  const x = (ml: number): number => left + ((WIDTH - left - 30) * Math.log(Math.max(ml, low) / low)) / Math.log(high / low)
  const bottom = top + organs.length * row
  const grid = ticks.map((value) => [
    svg('line', { class: 'grid', x1: x(value), x2: x(value), y1: top, y2: bottom }),
    svg('text', { class: 'tick', x: x(value), y: bottom + 16, 'text-anchor': 'middle' }, format(value)),
  ])
  const boxes = organs.map(([name, one], i) => organBox(name, one, top + row * (i + 0.5), x, left - 8, colour(name)))
  const caption = t('Organ volumes, ml: median, quartiles, range and cases (Fig. 1b, Fig. 9)')
  return figure(caption, bottom + foot, caption, svg('g', {}, grid), ...boxes)
}

function organBox(
  name: string,
  one: Statistics['organ_volumes'][string],
  middle: number,
  x: (ml: number) => number,
  nameEnd: number,
  color: string,
): SVGElement {
  const [low, high] = [Math.min(one.q1, ...one.values), Math.max(one.q3, ...one.values)]
  const description = t('{organ}: median {median} ml, quartiles {q1} to {q3}, {count} cases', { organ: title(name), median: format(one.median), q1: format(one.q1), q3: format(one.q3), count: one.count })
  // Points are spread over the row by a fixed pattern: the same page for the same data.
  const spread = (n: number): number => ((n * 7) % 13) - 6
  return svg(
    'g',
    { color },
    svg('title', {}, description),
    svg('text', { x: nameEnd, y: middle + 4, 'text-anchor': 'end' }, title(name)),
    svg('line', { class: 'whisker', x1: x(low), x2: x(high), y1: middle, y2: middle }),
    svg('rect', { class: 'box', x: x(one.q1), y: middle - 9, width: Math.max(x(one.q3) - x(one.q1), 1), height: 18, rx: 2 }),
    one.values.map((ml, n) => svg('circle', { class: 'dot', cx: x(ml), cy: middle + spread(n), r: 1.6 })),
    svg('line', { class: 'median', x1: x(one.median), x2: x(one.median), y1: middle - 10, y2: middle + 10 }),
  )
}
