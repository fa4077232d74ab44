/** The ways to end a task: submit, confirm, skip, ask a second reader. */

import { FINISHED, path } from '../api'
import { may } from '../context'
import { button, h, replace, title } from '../dom'
import { goToNext } from '../next'
import { ask, attempt, say } from '../notices'
import { chooseVersion, confirmDiscard, confirmRest } from './dialogs'
import { StaleBase, type Ended, type Work } from './work'
import type { Workspace } from './workspace'

export class HandIn {
  readonly element = h('section', { class: 'actions', 'aria-label': 'Hand in' })
  /** Something is being handed in: pressing a key twice must not do it twice. */
  private busy = false

  constructor(
    private readonly space: Workspace,
    private readonly onFinished: (text: string) => void,
    private readonly showDifference: (organ: string, url: string) => void,
  ) {}

  private get work(): Work {
    return this.space.work
  }

  draw(): void {
    const { context, locked } = this.space
    const { detail, changed } = this.work
    const edited = changed.size
    replace(
      this.element,
      h('h2', {}, edited ? `Hand in (${edited} edited)` : 'Hand in'),
      !locked && [
        button('Submit revision', () => this.submit(), { key: 'Ctrl+Enter', kind: edited ? 'primary' : '' }),
        button('Confirm case', () => this.confirm(), { key: 'Shift+Enter', kind: edited ? '' : 'primary' }),
        button('Second reader', () => this.askSecondReader(), { key: 'r' }),
        button('Skip', () => this.skip(), { key: 'x' }),
        edited > 0 && button('Discard drawing', () => this.discard()),
      ],
      this.work.free && button(this.work.elsewhere ? 'Work here instead' : 'Work on this case', () => this.begin(), { key: 'p', kind: 'primary' }),
      this.work.mayTakeBack && button('Take back', () => this.takeBack()),
      locked && FINISHED.has(detail.state) && may(context, 'manager', 'reader') && button('Reopen', () => attempt(() => this.reopen())),
      button('Next case', () => attempt(goToNext), { key: 'n', kind: locked && !this.work.free ? 'primary' : '' }),
      h('a', { class: 'button', href: path(`cases/${encodeURIComponent(detail.case_id)}/download.zip`), download: '' }, 'Download for ITK-SNAP or Slicer'),
    )
  }

  submit(): void {
    this.once(async () => {
      if (this.work.changed.size === 0) {
        say('Nothing has been drawn: confirm the case if it needs no revision.')
        return
      }
      await this.resolvingStaleBase(async () => {
        this.onFinished(`Revision submitted${unjudged(await this.work.submit())}`)
      })
    })
  }

  confirm(): void {
    this.once(async () => {
      if (this.work.changed.size > 0) {
        say('You have drawn in this case: submit the revision, or discard the drawing first.')
        return
      }
      const { unvisited, detail } = this.work
      if (!detail.confirm_unvisited && unvisited.length > 0 && !(await confirmRest(unvisited))) return
      const ended = await this.work.confirm()
      this.onFinished(`Case ${title(ended.state)}${unjudged(ended)}`) // revised, where a label was handed in before
    })
  }

  skip(): void {
    this.once(async () => {
      const drawn = [...this.work.changed].map(title).join(', ')
      const warning = drawn && `What you have drawn is not handed in: ${drawn}. It is kept for a while, in case you take this back.`
      const reason = await ask('Skip this case', 'Reason', 'Skip', warning)
      if (reason === null) return
      const { draft_kept_until } = await this.work.skip(reason)
      const until = draft_kept_until && new Date(draft_kept_until).toLocaleString()
      this.onFinished(until ? `Case skipped; your drawing is kept until ${until}` : 'Case skipped')
    })
  }

  askSecondReader(): void {
    this.once(async () => {
      const note = await ask('Ask a second reader', 'What should the second reader look at?', 'Ask')
      if (note === null) return
      await this.resolvingStaleBase(async () => {
        await this.work.askSecondReader(note)
        this.onFinished('A second reader has been asked')
      })
    })
  }

  /** Store a mask that another program made, and show it. */
  uploadMask(organ: string, file: File): void {
    this.once(() =>
      this.resolvingStaleBase(async () => {
        await this.work.uploadFile(organ, file)
        say(`The mask of ${title(organ)} is stored and shown. Submit the revision to end the task.`)
      }),
    )
  }

  private discard(): void {
    this.once(async () => {
      const stored = [...this.work.handedIn]
      if (!(await confirmDiscard(stored))) return
      await this.work.discard()
      if (stored.length > 0) showAgain() // with the labels that are in force now
    })
  }

  /** Work on the case that is only looked at, or that another window works on. */
  begin(): void {
    if (this.work.free) this.exclusively(() => this.work.begin())
  }

  private takeBack(): void {
    this.exclusively(async () => {
      await this.work.takeBack()
      showAgain()
    })
  }

  private async reopen(): Promise<void> {
    const reason = await ask('Reopen this task', 'Reason', 'Reopen')
    if (reason === null) return
    await this.work.reopen(reason)
    showAgain()
  }

  private once(action: () => Promise<void>): void {
    if (!this.space.locked) this.exclusively(action)
  }

  private exclusively(action: () => Promise<void>): void {
    if (this.busy) return
    this.busy = true
    attempt(() =>
      action().finally(() => {
        this.busy = false
      }),
    )
  }

  /** Run something that uploads labels; where one has a stale base, nothing is lost and the annotator decides. */
  private async resolvingStaleBase(action: () => Promise<void>): Promise<void> {
    try {
      await action()
    } catch (error) {
      if (!(error instanceof StaleBase)) throw error
      await this.resolve(error)
    }
  }

  private async resolve(stale: StaleBase): Promise<void> {
    const answer = await chooseVersion(stale)
    const { organ, current } = stale
    if (!current || !answer) return
    if (answer === 'difference') return this.showDifference(organ, current.url)
    if (answer === 'theirs') await this.work.takeOver(organ, current)
    this.work.rebase(organ, current.id)
    say(answer === 'theirs' ? `${title(organ)} is theirs now; continue drawing, then submit.` : 'Submit again to put yours into force.')
  }
}

/** Which organs nobody has judged, as the end of a sentence. */
function unjudged({ unjudged: organs }: Ended): string {
  return organs.length ? `; without a verdict: ${organs.map(title).join(', ')}` : ''
}

/** Open the page of the same task anew. */
function showAgain(): void {
  dispatchEvent(new HashChangeEvent('hashchange'))
}
