/** The ways to end a task: submit, confirm, skip, ask a second reader. */

import { t, when } from '../i18n'
import { FINISHED, path } from '../api'
import { may } from '../context'
import { button, h, replace, title } from '../dom'
import { goToNext } from '../next'
import { ask, attempt, say } from '../notices'
import { chooseVersion, confirmDiscard, confirmRest } from './dialogs'
import { StaleBase, type Ended, type Work } from './work'
import type { Workspace } from './workspace'

export class HandIn {
  readonly element = h('section', { class: 'actions', 'aria-label': t('Hand in') })
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
      h('h2', {}, edited ? t('Hand in ({count} edited)', { count: edited }) : t('Hand in')),
      !locked && [
        button(t('Submit revision'), () => this.submit(), { key: 'Ctrl+Enter', kind: edited ? 'primary' : '' }),
        button(t('Confirm case'), () => this.confirm(), { key: 'Shift+Enter', kind: edited ? '' : 'primary' }),
        button(t('Second reader'), () => this.askSecondReader(), { key: 'r' }),
        button(t('Skip'), () => this.skip(), { key: 'x' }),
        edited > 0 && button(t('Discard drawing'), () => this.discard()),
      ],
      this.work.free && button(this.work.elsewhere ? t('Work here instead') : t('Work on this case'), () => this.begin(), { key: 'p', kind: 'primary' }),
      this.work.mayTakeBack && button(t('Take back'), () => this.takeBack()),
      locked && FINISHED.has(detail.state) && may(context, 'manager', 'reader') && button(t('Reopen'), () => attempt(() => this.reopen())),
      button(t('Next case'), () => attempt(goToNext), { key: 'n', kind: locked && !this.work.free ? 'primary' : '' }),
      h('a', { class: 'button', href: path(`cases/${encodeURIComponent(detail.case_id)}/download.zip`), download: '' }, t('Download for ITK-SNAP or Slicer')),
    )
  }

  submit(): void {
    this.once(async () => {
      if (this.work.changed.size === 0) {
        say(t('Nothing has been drawn: confirm the case if it needs no revision.'))
        return
      }
      await this.resolvingStaleBase(async () => {
        this.onFinished(t('Revision submitted') + unjudged(await this.work.submit()))
      })
    })
  }

  confirm(): void {
    this.once(async () => {
      if (this.work.changed.size > 0) {
        say(t('You have drawn in this case: submit the revision, or discard the drawing first.'))
        return
      }
      const { unvisited, detail } = this.work
      if (!detail.confirm_unvisited && unvisited.length > 0 && !(await confirmRest(unvisited))) return
      const ended = await this.work.confirm()
      this.onFinished(t('Case {state}', { state: title(ended.state) }) + unjudged(ended)) // revised, where a label was handed in before
    })
  }

  skip(): void {
    this.once(async () => {
      const drawn = [...this.work.changed].map(title).join(', ')
      const warning = drawn && t('What you have drawn is not handed in: {organs}. It is kept for a while, in case you take this back.', { organs: drawn })
      const reason = await ask(t('Skip this case'), t('Reason'), t('Skip'), warning)
      if (reason === null) return
      const { draft_kept_until } = await this.work.skip(reason)
      const until = draft_kept_until
      this.onFinished(until ? t('Case skipped; your drawing is kept until {until}', { until: when(until) }) : t('Case skipped'))
    })
  }

  askSecondReader(): void {
    this.once(async () => {
      const note = await ask(t('Ask a second reader'), t('What should the second reader look at?'), t('Ask'))
      if (note === null) return
      await this.resolvingStaleBase(async () => {
        await this.work.askSecondReader(note)
        this.onFinished(t('A second reader has been asked'))
      })
    })
  }

  /** Store a mask that another program made, and show it. */
  uploadMask(organ: string, file: File): void {
    this.once(() =>
      this.resolvingStaleBase(async () => {
        await this.work.uploadFile(organ, file)
        say(t('The mask of {organ} is stored and shown. Submit the revision to end the task.', { organ: title(organ) }))
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
    const reason = await ask(t('Reopen this task'), t('Reason'), t('Reopen'))
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
    say(answer === 'theirs' ? t('{organ} is theirs now; continue drawing, then submit.', { organ: title(organ) }) : t('Submit again to put yours into force.'))
  }
}

/** Which organs nobody has judged, as the end of a sentence. */
function unjudged({ unjudged: organs }: Ended): string {
  return organs.length ? t('; without a verdict: {organs}', { organs: organs.map(title).join(', ') }) : ''
}

/** Open the page of the same task anew. */
function showAgain(): void {
  dispatchEvent(new HashChangeEvent('hashchange'))
}
