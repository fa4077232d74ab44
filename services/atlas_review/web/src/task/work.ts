/** One annotator's work on one task: what is drawn, where it is kept, and how it is handed in. */

import { call, get, path, Problem, query, send, type Case, type LabelVersion, type Organ, type Region, type Task, type TaskDetail } from '../api'
import type { Context } from '../context'
import { Autosave, fetchDraft, LocalDrafts, type Bases, type LocalDraft, type SaveState, type ServerDraft } from '../drafts'
import { title } from '../dom'
import { changedLabels, History, type Edit } from '../edits'
import { WorkClock } from '../clock'
import { Viewer, type Bytes, type Stream } from '../viewer'
import { Lease } from './lease'

/** Somebody else changed the same organ since this work began; both versions are kept. */
export class StaleBase extends Error {
  constructor(
    readonly organ: string,
    readonly current: LabelVersion,
    readonly submitted: LabelVersion | null,
    readonly problem: Problem,
  ) {
    super(`Somebody else changed ${organ}`)
  }
}

export interface WorkEvents {
  changed: () => void
  /** How much of the CT is there, 0 to 1. */
  loading: (share: number) => void
  saved: (state: SaveState, problem?: unknown) => void
  leaseLost: (problem: unknown) => void
  /** Both this browser and the server have a draft, and they differ. */
  chooseDraft: () => Promise<'browser' | 'server'>
}

interface RegionList {
  threshold: number
  regions: Region[]
}

const WORKABLE = new Set(['open', 'leased', 'second_reading'])

/** A volume as it arrives; `progress` hears the share that is there, 0 to 1. */
async function streamOf(url: string, progress: (share: number) => void = () => {}): Promise<Stream> {
  const response = await send(url, { headers: { Accept: '*/*' } })
  const whole = Number(response.headers.get('Content-Length'))
  let there = 0
  const counting = new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
    transform: (chunk, controller) => {
      there += chunk.length
      if (whole) progress(Math.min(there / whole, 1))
      controller.enqueue(chunk)
    },
  })
  return response.body!.pipeThrough(counting)
}

export class Work {
  readonly history = new History()
  readonly clock: WorkClock
  regions: Region[] = []
  /** Attention (Eq. 4) from which a voxel belongs to a region. */
  threshold = 0
  detail!: TaskDetail
  viewer!: Viewer
  /** Why this task can only be looked at, or null. */
  readOnly: Problem | string | null = null
  /** Organs that differ from the labels in force. */
  changed = new Set<string>()
  /** Organs of which a label that was handed in here is in force. */
  readonly handedIn = new Set<string>()
  private bases: Bases = {}
  private readonly lease: Lease
  private local!: LocalDrafts
  private autosave!: Autosave
  /** Versions on the server that equal the drawing as it is now, by organ. */
  private readonly uploaded = new Map<string, string>()

  private constructor(
    private readonly context: Context,
    readonly id: string,
    private readonly events: WorkEvents,
  ) {
    this.clock = new WorkClock(id)
    this.lease = new Lease(id, (problem) => this.loseLease(problem))
  }

  static async open(context: Context, id: string, canvas: HTMLCanvasElement, events: WorkEvents): Promise<Work> {
    const work = new Work(context, id, events)
    try {
      await work.start(canvas)
    } catch (error) {
      await work.close()
      throw error
    }
    return work
  }

  private loseLease(problem: unknown): void {
    this.readOnly = problem instanceof Problem ? problem : 'The lease of this task was lost.'
    this.events.leaseLost(problem)
  }

  private get case(): Case {
    return this.detail.case
  }

  private async start(canvas: HTMLCanvasElement): Promise<void> {
    this.detail = await get<TaskDetail>(`tasks/${this.id}`)
    await this.takeLease()
    const { ct, label_map, attention_map } = this.case
    this.viewer = new Viewer(canvas, this.context.organs, this.history)
    // All are asked for at once; the CT is shown as soon as it is there.
    const [labels, attention, regions] = [label_map && streamOf(label_map.url), attention_map && streamOf(attention_map.url), this.fetchRegions()]
    for (const one of [labels, attention, regions]) one?.catch(() => {}) // awaited below
    await this.viewer.load(await streamOf(ct.url, this.events.loading), this.case.affine)
    await this.viewer.loadLabels(await labels)
    this.regions = (await regions).regions
    this.threshold = (await regions).threshold
    await this.viewer.loadAttention(await attention, this.threshold)
    this.local = await LocalDrafts.open(this.context.session.user, this.id)
    this.autosave = new Autosave(this.id, this.local, () => ({ bytes: this.viewer.exportMap(), bases: this.bases }), this.events.saved)
    if (this.readOnly === null) await this.restore()
    this.viewer.onEdit = (edit) => void this.keep(edit)
  }

  /** The regions of every organ whose attention counts, largest first. */
  private async fetchRegions(): Promise<RegionList> {
    if (this.case.attention.length === 0) return { threshold: 0, regions: [] }
    return get<RegionList>(`cases/${encodeURIComponent(this.case.id)}/regions`)
  }

  private async takeLease(): Promise<void> {
    if (!WORKABLE.has(this.detail.state)) {
      this.readOnly = `This task is ${title(this.detail.state)}.`
      return
    }
    try {
      Object.assign(this.detail, await this.lease.take())
    } catch (error) {
      if (!(error instanceof Problem) || ![403, 409].includes(error.status)) throw error
      this.readOnly = error
    }
  }

  // --- drafts -----------------------------------------------------------------------------------

  private async restore(): Promise<void> {
    const [local, server] = await Promise.all([this.local.load(), fetchDraft(this.id)])
    const source = await this.newest(local, server)
    if (source === 'none') return
    if (source === 'browser' && local) await this.restoreLocal(local)
    else if (server) await this.restoreServer(server)
    this.noteChanges()
  }

  private async newest(local: LocalDraft | null, server: ServerDraft | null): Promise<'none' | 'browser' | 'server'> {
    if (!local || (local.edits.length === 0 && !local.snapshot)) return server ? 'server' : 'none'
    if (!server || server.sha256 === local.snapshot?.sha256) return 'browser'
    // The server's draft was never in this browser.
    return local.edits.length === 0 ? 'server' : this.events.chooseDraft()
  }

  private async restoreLocal(local: LocalDraft): Promise<void> {
    this.bases = local.bases
    if (local.snapshot) await this.layOver(local.snapshot.bytes, local.bases)
    for (const edit of local.edits) {
      this.viewer.apply(edit)
      this.history.add(edit)
    }
    if (local.edits.length > 0) this.autosave.schedule(0)
    this.events.saved(local.edits.length > 0 ? 'local' : 'server')
  }

  private async restoreServer(server: ServerDraft): Promise<void> {
    this.bases = server.bases
    await this.layOver(server.bytes, server.bases)
    await this.local.clear()
    await this.local.settle({ bytes: server.bytes, sha256: server.sha256 }, server.bases, this.local.position)
    this.events.saved('server')
  }

  private async layOver(draft: Bytes, bases: Bases): Promise<void> {
    const labels = new Set(this.organs().filter((one) => one.name in bases).map((one) => one.label))
    this.viewer.restore(await this.viewer.readMap(draft), labels)
  }

  /** Every edit is safe in this browser before anything else is done with it. */
  private async keep(edit: Edit): Promise<void> {
    for (const organ of this.touched(edit)) {
      this.bases[organ] ??= this.inForce(organ)?.id ?? 'none'
      this.uploaded.delete(organ)
    }
    try {
      await this.autosave.keep(edit, this.bases)
    } catch (error) {
      this.events.saved('saving', error)
    }
    this.noteChanges()
  }

  private touched(edit: Edit): string[] {
    const labels = new Set([...edit.before, ...edit.after])
    return this.organs().filter((one) => labels.has(one.label)).map((one) => one.name)
  }

  private noteChanges(): void {
    const { base, now } = this.viewer.maps
    const labels = changedLabels(base, now)
    this.changed = new Set(this.organs().filter((one) => labels.has(one.label)).map((one) => one.name))
    this.events.changed()
  }

  /** Discard every edit, here and on the server. */
  async discard(): Promise<void> {
    this.viewer.reset()
    await this.dropDraft()
    this.bases = {}
    this.uploaded.clear()
    this.noteChanges()
    this.events.saved('clean')
  }

  private async dropDraft(): Promise<void> {
    await this.local.clear()
    await send(`tasks/${this.id}/draft`, { method: 'DELETE' }).catch((error: unknown) => {
      if (!(error instanceof Problem) || error.status !== 404) throw error
    })
  }

  // --- labels, attention, verdicts --------------------------------------------------------------

  private organs(): Organ[] {
    return this.context.organs
  }

  inForce(organ: string): LabelVersion | null {
    return this.case.labels.find((one) => one.organ === organ) ?? null
  }

  /** Show the attention of one organ, or of all ('' for all). */
  async showAttention(organ: string): Promise<void> {
    const one = this.case.attention.find((candidate) => candidate.organ === organ)
    const volume = organ ? one : this.case.attention_map
    await this.viewer.loadAttention(volume ? await streamOf(volume.url) : null, this.threshold)
  }

  async judge(organ: string, verdict: 'confirmed' | 'needs_revision', error_type: string, note: string): Promise<void> {
    const body = { verdict, ...(error_type && { error_type }), ...(note && { note }) }
    const detail = await call<TaskDetail>('PUT', `tasks/${this.id}/organs/${organ}`, body)
    if (detail) this.detail = { ...detail, case: this.detail.case }
    this.events.changed()
  }

  // --- handing in -------------------------------------------------------------------------------

  async confirm(): Promise<void> {
    await this.act('confirm', { seconds_spent: this.clock.seconds })
    await this.finished()
  }

  async skip(reason: string): Promise<void> {
    await this.act('skip', { reason, seconds_spent: this.clock.seconds })
    await this.finished()
  }

  /** The drawing is handed in first: a second reader sees labels, but not the drafts of others. */
  async askSecondReader(note: string): Promise<void> {
    await this.uploadChanged()
    await this.act('second-reader', { note, seconds_spent: this.clock.seconds })
    await this.finished()
  }

  async reopen(reason: string): Promise<void> {
    await this.act('reopen', { reason })
  }

  private async act(action: string, body: unknown): Promise<void> {
    const task = await call<Task>('POST', `tasks/${this.id}/${action}`, body)
    if (task) Object.assign(this.detail, task)
    this.events.changed()
  }

  /** Upload each changed organ as a mask of its own, then hand the task in. Throws `StaleBase`. */
  async submit(): Promise<void> {
    await this.uploadChanged()
    const labels = Object.fromEntries(this.uploaded)
    await this.act('revise', { seconds_spent: this.clock.seconds, labels })
    await this.finished()
  }

  private async uploadChanged(): Promise<void> {
    for (const organ of this.changed) {
      if (!this.uploaded.has(organ)) await this.uploadDrawn(organ)
    }
  }

  private async uploadDrawn(organ: string): Promise<void> {
    const label = this.organs().find((one) => one.name === organ)!.label
    const mask = new Blob([await this.viewer.exportMask(label)], { type: 'application/gzip' })
    await this.upload(organ, mask, `${organ}.nii.gz`)
  }

  private async upload(organ: string, file: Blob, name: string): Promise<LabelVersion> {
    const base = this.bases[organ] ?? this.inForce(organ)?.id ?? 'none'
    const body = new FormData()
    body.set('label', file, name)
    const url = `cases/${encodeURIComponent(this.case.id)}/labels${query({ organ, base, task: this.id })}`
    try {
      const version = (await (await send(url, { method: 'POST', body })).json()) as LabelVersion
      this.uploaded.set(organ, version.id)
      // Beside an original label a revised one is kept without coming into force.
      if (version.in_force) {
        this.rebase(organ, version.id)
        this.handedIn.add(organ)
      }
      return version
    } catch (error) {
      if (!(error instanceof Problem) || error.status !== 409) throw error
      const { current, submitted } = error.body as { current?: LabelVersion; submitted?: LabelVersion }
      if (!current) throw error // the case is another's now: kept as a proposal, as the problem says
      throw new StaleBase(organ, current, submitted ?? null, error)
    }
  }

  /** The drawing of an organ now builds on this version. */
  rebase(organ: string, version: string): void {
    this.bases[organ] = version
  }

  /** A mask made elsewhere: checked and stored by the server, then shown as an edit. */
  async uploadFile(organ: string, file: File): Promise<void> {
    const version = await this.upload(organ, file, 'label.nii.gz')
    await this.takeOver(organ, version)
    this.uploaded.set(organ, version.id)
  }

  /** Put a stored version of an organ into the drawing. */
  async takeOver(organ: string, version: LabelVersion): Promise<void> {
    const label = this.organs().find((one) => one.name === organ)!.label
    this.viewer.replaceOrgan(label, await this.viewer.readMap(await streamOf(path(version.url))))
  }

  private async finished(): Promise<void> {
    this.lease.end()
    await this.autosave.stop()
    this.clock.finish()
    await this.local.clear()
    this.readOnly = `This task is ${title(this.detail.state)}.`
    this.events.saved('clean')
  }

  async close(): Promise<void> {
    this.lease.end()
    this.clock.stop()
    if (!this.autosave) {
      this.viewer?.close()
      return
    }
    // The strokes are in the browser's database; the server gets them too if it answers.
    if (this.readOnly === null && this.local.position > 0) await this.autosave.flush()
    await this.autosave.stop()
    this.local.close()
    this.viewer.close()
  }
}
