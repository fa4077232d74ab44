/** Questions of the task page that have a table or a choice of their own. */

import type { LabelVersion } from '../api'
import { h, title } from '../dom'
import type { Candidate } from '../drafts/choice'
import { choose } from '../notices'
import { WINDOW } from '../window'
import { describeVersion, explain } from './texts'
import type { StaleBase } from './work'

/** Several windows have drawn in this task: which drawing does this one go on with? */
export async function chooseDraft(drafts: readonly Candidate[]): Promise<Candidate> {
  const name = (one: Candidate): string => `${one.window === WINDOW ? 'This window’s' : 'Another window’s'}, ${new Date(one.saved_at).toLocaleString()}`
  const answer = await choose(
    'This case was drawn in more than one window',
    h('p', {}, 'Choose the drawing to go on with. The others are kept until the case ends; they are offered again when it is opened.'),
    drafts.map((one, n) => [String(n), name(one)] as [string, string]),
  )
  return drafts[Number(answer)] ?? drafts[0]!
}

/** Somebody else changed the organ meanwhile: which version should the drawing build on? '' decides later. */
export async function chooseVersion({ organ, current, submitted, problem }: StaleBase): Promise<'theirs' | 'mine' | 'difference' | ''> {
  const row = (name: string, version: LabelVersion | null): HTMLElement =>
    h('tr', {}, h('th', { scope: 'row' }, name), h('td', {}, version ? describeVersion(version) : 'unknown'))
  const answer = await choose(
    `Somebody else changed ${title(organ)} while you worked`,
    h(
      'div',
      {},
      h('p', {}, explain(problem)),
      h('table', {}, h('tbody', {}, row('In force now', current), row('Yours, kept beside it', submitted))),
      h('p', {}, 'Nothing is lost: both versions are stored. Look at the one in force before you decide, or put your drawing on top of it.'),
    ),
    [
      ['theirs', 'Take theirs into my drawing'],
      ['mine', 'Keep mine on top of theirs'],
      ['difference', 'Show the difference'],
      ['', 'Decide later'],
    ],
  )
  return answer as 'theirs' | 'mine' | 'difference' | ''
}

/** Whether to throw the drawing away; `stored` organs were handed in already and keep their labels. */
export async function confirmDiscard(stored: readonly string[]): Promise<boolean> {
  const kept = stored.length > 0 && h('p', {}, `What is stored stays in force: ${stored.map(title).join(', ')}.`)
  const answer = await choose(
    'Discard everything drawn in this case?',
    h('div', {}, h('p', {}, 'The draft is removed from this browser and from the server.'), kept),
    [
      ['', 'Keep drawing'],
      ['discard', 'Discard'],
    ],
  )
  return answer === 'discard'
}

/** Some organs were not looked at: whether to confirm the others and leave those without a verdict. */
export async function confirmRest(unvisited: readonly string[]): Promise<boolean> {
  const answer = await choose(
    'Not everything was looked at',
    h('p', {}, `These stay without a verdict: ${unvisited.map(title).join(', ')}. An organ counts once each of its attended regions, or without any the organ itself, was visited.`),
    [
      ['', 'Keep looking'],
      ['rest', 'Confirm the others'],
    ],
  )
  return answer === 'rest'
}
