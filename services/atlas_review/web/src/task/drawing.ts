/** What is drawn in a task: where it is kept, and which draft it goes on from. */

import { Problem, send, type Organ } from '../api'
import { Autosave, fetchDraft, type SaveState } from '../drafts/autosave'
import { candidates, choices, serverDrafts, type Candidate } from '../drafts/choice'
import { LocalDrafts, type Bases, type LocalDraft } from '../drafts/local'
import type { Edit, History } from '../voxels/edits'
import type { Bytes, Viewer } from '../viewer'
import { WINDOW } from '../window'

export interface DrawingEvents {
  saved: (state: SaveState, problem?: unknown) => void
  /** Several windows have drawn: which drawing does this one go on with? */
  chooseDraft: (drafts: readonly Candidate[]) => Promise<Candidate>
}

export class Drawing {
  /** Version of each drawn organ's label that the drawing began from. */
  bases: Bases = {}
  private readonly autosave: Autosave
  private restored = false

  private constructor(
    private readonly task: string,
    private readonly local: LocalDrafts,
    private readonly viewer: Viewer,
    private readonly history: History,
    private readonly organs: readonly Organ[],
    private readonly events: DrawingEvents,
  ) {
    this.autosave = new Autosave(task, local, () => ({ bytes: viewer.exportMap(), bases: this.bases }), events.saved)
  }

  static async open(user: string, task: string, viewer: Viewer, history: History, organs: readonly Organ[], events: DrawingEvents): Promise<Drawing> {
    return new Drawing(task, await LocalDrafts.open(user, task, WINDOW), viewer, history, organs, events)
  }

  /** Go on with the draft of this window, or of another one; false: there is none. */
  async restore(): Promise<boolean> {
    const [local, server] = await Promise.all([this.local.load(), serverDrafts(this.task)])
    const drafts = choices(candidates(local, server), WINDOW)
    const chosen = drafts.length > 1 ? await this.events.chooseDraft(drafts) : drafts[0]
    if (!chosen || (this.restored && chosen.window === WINDOW)) return false
    if (this.restored) {
      this.viewer.editor.reset()
      this.history.clear()
    }
    this.restored = true
    if (chosen.local) await this.restoreLocal(chosen.local)
    else await this.restoreServer(chosen.server!.url)
    return true
  }

  private async restoreLocal(draft: LocalDraft): Promise<void> {
    if (draft.window !== WINDOW) await this.local.adopt(draft)
    this.bases = draft.bases
    if (draft.snapshot) await this.layOver(draft.snapshot.bytes, draft.bases)
    for (const edit of draft.edits) {
      this.viewer.editor.apply(edit)
      this.history.add(edit)
    }
    if (draft.edits.length > 0) this.autosave.schedule(0)
    this.events.saved(draft.edits.length > 0 ? 'local' : 'server')
  }

  private async restoreServer(url: string): Promise<void> {
    const { bytes, sha256, bases } = await fetchDraft(url)
    this.bases = bases
    await this.layOver(bytes, bases)
    await this.local.adopt({ bases, snapshot: { bytes, sha256 }, edits: [] })
    this.events.saved('server')
  }

  private async layOver(draft: Bytes, bases: Bases): Promise<void> {
    const labels = new Set(this.organs.filter((one) => one.name in bases).map((one) => one.label))
    this.viewer.editor.restore(await this.viewer.readMap(draft), labels)
  }

  /** Every edit is safe in this browser before anything else is done with it. */
  async keep(edit: Edit): Promise<void> {
    this.restored = true
    try {
      await this.autosave.keep(edit, this.bases)
    } catch (error) {
      this.events.saved('saving', error)
    }
  }

  /** Discard every edit, here and on the server, of every window. */
  async discard(): Promise<void> {
    this.viewer.editor.reset()
    await this.local.clear()
    await send(`tasks/${this.task}/draft`, { method: 'DELETE' }).catch((error: unknown) => {
      if (!(error instanceof Problem) || error.status !== 404) throw error
    })
    this.bases = {}
    this.events.saved('clean')
  }

  /** The server gets what is drawn now. */
  async flush(): Promise<void> {
    if (this.local.position > 0) await this.autosave.flush()
  }

  /** The work was handed in: no draft is needed in this browser any more. */
  async finish(): Promise<void> {
    await this.autosave.stop()
    await this.local.clear()
    this.events.saved('clean')
  }

  async close(): Promise<void> {
    await this.autosave.stop()
    this.local.close()
  }
}
