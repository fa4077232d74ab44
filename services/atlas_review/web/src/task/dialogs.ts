/** Questions of the task page that have a table or a choice of their own. */

import { t, when } from '../i18n'
import type { LabelVersion } from '../api'
import { h, title } from '../dom'
import type { Candidate } from '../drafts/choice'
import { choose } from '../notices'
import { WINDOW } from '../window'
import { describeVersion } from './texts'
import type { StaleBase } from './work'

/** Several windows have drawn in this task: which drawing does this one go on with? */
export async function chooseDraft(drafts: readonly Candidate[]): Promise<Candidate> {
  const name = ({ window, saved_at }: Candidate): string =>
    window === WINDOW ? t('This window’s, {when}', { when: when(saved_at) }) : t('Another window’s, {when}', { when: when(saved_at) })
  const answer = await choose(
    t('This case was drawn in more than one window'),
    h('p', {}, t('Choose the drawing to go on with. The others are kept until the case ends; they are offered again when it is opened.')),
    drafts.map((one, n) => [String(n), name(one)] as [string, string]),
  )
  return drafts[Number(answer)] ?? drafts[0]!
}

/** Somebody else changed the organ meanwhile: which version should the drawing build on? '' decides later. */
export async function chooseVersion({ organ, current, submitted, problem }: StaleBase): Promise<'theirs' | 'mine' | 'difference' | ''> {
  const row = (name: string, version: LabelVersion | null): HTMLElement =>
    h('tr', {}, h('th', { scope: 'row' }, name), h('td', {}, version ? describeVersion(version) : t('unknown')))
  const answer = await choose(
    t('Somebody else changed {organ} while you worked', { organ: title(organ) }),
    h(
      'div',
      {},
      h('p', {}, problem.detail),
      h('table', {}, h('tbody', {}, row(t('In force now'), current), row(t('Yours, kept beside it'), submitted))),
      h('p', {}, t('Nothing is lost: both versions are stored. Look at the one in force before you decide, or put your drawing on top of it.')),
    ),
    [
      ['theirs', t('Take theirs into my drawing')],
      ['mine', t('Keep mine on top of theirs')],
      ['difference', t('Show the difference')],
      ['', t('Decide later')],
    ],
  )
  return answer as 'theirs' | 'mine' | 'difference' | ''
}

/** Whether to throw the drawing away; `stored` organs were handed in already and keep their labels. */
export async function confirmDiscard(stored: readonly string[]): Promise<boolean> {
  const kept = stored.length > 0 && h('p', {}, t('What is stored stays in force: {organs}.', { organs: stored.map(title).join(', ') }))
  const answer = await choose(
    t('Discard everything drawn in this case?'),
    h('div', {}, h('p', {}, t('The draft is removed from this browser and from the server.')), kept),
    [
      ['', t('Keep drawing')],
      ['discard', t('Discard')],
    ],
  )
  return answer === 'discard'
}

/** Some organs were not looked at: whether to confirm the others and leave those without a verdict. */
export async function confirmRest(unvisited: readonly string[]): Promise<boolean> {
  const answer = await choose(
    t('Not everything was looked at'),
    h('p', {}, t('These stay without a verdict: {organs}. An organ counts once each of its attended regions, or without any the organ itself, was visited.', { organs: unvisited.map(title).join(', ') })),
    [
      ['', t('Keep looking')],
      ['rest', t('Confirm the others')],
    ],
  )
  return answer === 'rest'
}
