/** One annotator's work on one task: what is drawn, where it is kept, and how it is handed in. */

import { t } from '../i18n'
import { call, FINISHED, get, path, Problem, query, send, type Case, type LabelVersion, type Organ, type Region, type Task, type TaskDetail, type Verdict } from '../api'
import type { Context } from '../context'
import { title } from '../dom'
import { changedLabels, History, type Edit } from '../voxels/edits'
import { WorkClock } from '../clock'
import type { Block } from '../views/planes'
import { Viewer, type Bytes, type Stream } from '../viewer'
import { Drawing, type DrawingEvents } from './drawing'
import { Lease, OPEN_ELSEWHERE } from './lease'

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

export interface WorkEvents extends DrawingEvents {
  changed: () => void
  /** How much of the CT is there, 0 to 1. */
  loading: (share: number) => void
  leaseLost: (problem: unknown) => void
}

/** Why nothing can be changed: the case is only looked at, which keeps nobody from it. */
export const LOOKING = 'looking'

/** How a task ended. */
export interface Ended extends Task {
  unjudged: string[]
  draft_kept_until: string | null
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
  /** Why this task can only be looked at: `LOOKING`, a text, or what the server said; null: it cannot. */
  readOnly: Problem | string | null = LOOKING
  /** Organs that differ from the labels in force. */
  changed = new Set<string>()
  /** Organs of which a label that was handed in here is in force. */
  readonly handedIn = new Set<string>()
  /** Regions that the crosshair was taken to, and organs that somebody has picked. */
  readonly visited = new Set<Region | string>()
  private readonly lease: Lease
  private drawing!: Drawing
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
    this.readOnly = problem instanceof Problem ? problem : t('The lease of this task was lost.')
    this.events.leaseLost(problem)
  }

  private get case(): Case {
    return this.detail.case
  }

  private async start(canvas: HTMLCanvasElement): Promise<void> {
    this.detail = await get<TaskDetail>(`tasks/${this.id}`)
    await this.takeHeld()
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
    this.drawing = await Drawing.open(this.user, this.id, this.viewer, this.history, this.organs(), this.events)
    if (this.readOnly === null) await this.restore()
    this.viewer.editor.onEdit = (edit) => void this.keep(edit)
  }

  private async restore(): Promise<void> {
    if (await this.drawing.restore()) this.noteChanges()
  }

  private get user(): string {
    return this.context.session.user
  }

  /** The regions of every organ whose attention counts, largest first. */
  private async fetchRegions(): Promise<RegionList> {
    if (this.case.attention.length === 0) return { threshold: 0, regions: [] }
    return get<RegionList>(`cases/${encodeURIComponent(this.case.id)}/regions`)
  }

  /** Looking takes no lease: only one that is held already is renewed. */
  private async takeHeld(): Promise<void> {
    if (!WORKABLE.has(this.detail.state)) this.readOnly = t('This task is {state}.', { state: title(this.detail.state) })
    else if (this.detail.assignee === this.user) await this.takeLease(false)
  }

  private async takeLease(takeOver: boolean): Promise<void> {
    try {
      Object.assign(this.detail, await this.lease.take(takeOver))
      this.readOnly = null
    } catch (error) {
      if (!(error instanceof Problem) || ![403, 409].includes(error.status)) throw error
      this.readOnly = error
    }
  }

  /** Another window of the same person works on this task. */
  get elsewhere(): boolean {
    return this.readOnly instanceof Problem && this.readOnly.message === OPEN_ELSEWHERE
  }

  /** Whether this task can be worked on from here, once that is asked for. */
  get free(): boolean {
    return this.readOnly === LOOKING || this.elsewhere
  }

  /** Work on this task from now on, instead of only looking at it. */
  async begin(): Promise<void> {
    await this.takeLease(this.elsewhere)
    if (this.readOnly === null) await this.restore()
    this.events.changed()
  }

  // --- drawing ----------------------------------------------------------------------------------

  private async keep(edit: Edit): Promise<void> {
    for (const organ of this.touched(edit)) {
      this.drawing.bases[organ] ??= this.inForce(organ)?.id ?? 'none'
      this.uploaded.delete(organ)
    }
    await this.drawing.keep(edit)
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
    await this.drawing.discard()
    this.uploaded.clear()
    this.noteChanges()
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

  /** Outline a shape of the active organ; null: none. */
  async showShape(url: string | null): Promise<void> {
    this.viewer.showShape(url ? await this.readShape(url) : null)
  }

  async readShape(url: string): Promise<Block> {
    return this.viewer.readBlock(await streamOf(url))
  }

  /** A mask or label map on the whole grid. */
  async readMap(url: string): Promise<Bytes> {
    return this.viewer.readMap(await streamOf(url))
  }

  async judge(organ: string, verdict: Verdict | null, error_type: string, note: string): Promise<void> {
    const body = { verdict, ...(error_type && { error_type }), ...(note && { note }) }
    const detail = await call<TaskDetail>('PUT', `tasks/${this.id}/organs/${organ}`, body)
    if (detail) this.detail = { ...detail, case: this.detail.case }
    this.events.changed()
  }

  // --- handing in -------------------------------------------------------------------------------

  /** Organs without a verdict of which nobody has looked at all: neither at them nor at each of their regions. */
  get unvisited(): string[] {
    const open = this.detail.organs.filter((one) => one.verdict === null && !this.handedIn.has(one.organ))
    return open.map((one) => one.organ).filter((organ) => !this.looked(organ))
  }

  private looked(organ: string): boolean {
    const regions = this.regions.filter((region) => region.organ === organ)
    return regions.length > 0 ? regions.every((region) => this.visited.has(region)) : this.visited.has(organ)
  }

  /** Confirm what was looked at, or (where the site allows it) everything. */
  async confirm(): Promise<Ended> {
    const { organs, confirm_unvisited } = this.detail
    const visited = confirm_unvisited ? null : organs.map((one) => one.organ).filter((organ) => this.looked(organ))
    const ended = await this.act('confirm', { seconds_spent: this.clock.seconds, visited })
    await this.finished()
    return ended
  }

  /** What is drawn is kept for a while, as the answer says. */
  async skip(reason: string): Promise<Ended> {
    await this.drawing.flush()
    const ended = await this.act('skip', { reason, seconds_spent: this.clock.seconds })
    await this.finished()
    return ended
  }

  /** The drawing is handed in first: a second reader sees labels, but not the drafts of others. */
  async askSecondReader(note: string): Promise<void> {
    await this.uploadChanged()
    await this.act('second-reader', { note, seconds_spent: this.clock.seconds })
    await this.finished()
  }

  /** Put the ended task back into the queue, and take it. */
  async reopen(reason: string): Promise<void> {
    await this.act('reopen', { reason })
    await this.lease.take()
  }

  /** Who ended this task may undo that, until its labels are used. */
  get mayTakeBack(): boolean {
    return FINISHED.has(this.detail.state) && this.detail.assignee === this.user
  }

  async takeBack(): Promise<void> {
    await this.act('take-back', {})
  }

  private async act(action: string, body: unknown): Promise<Ended> {
    const task = await call<Ended>('POST', `tasks/${this.id}/${action}`, body)
    if (!task) throw new Error('The server gave no task')
    Object.assign(this.detail, task)
    this.events.changed()
    return task
  }

  /** Upload each changed organ as a mask of its own, then hand the task in. Throws `StaleBase`. */
  async submit(): Promise<Ended> {
    await this.uploadChanged()
    const labels = Object.fromEntries(this.uploaded)
    const ended = await this.act('revise', { seconds_spent: this.clock.seconds, labels })
    await this.finished()
    return ended
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
    const base = this.drawing.bases[organ] ?? this.inForce(organ)?.id ?? 'none'
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
    this.drawing.bases[organ] = version
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
    this.viewer.editor.replaceOrgan(label, await this.readMap(path(version.url)))
  }

  private async finished(): Promise<void> {
    this.lease.end()
    this.clock.finish()
    await this.drawing.finish()
    this.readOnly = t('This task is {state}.', { state: title(this.detail.state) })
    this.events.changed()
  }

  async close(): Promise<void> {
    this.lease.leave()
    this.clock.stop()
    // The strokes are in the browser's database; the server gets them too if it answers.
    if (this.readOnly === null) await this.drawing?.flush()
    await this.drawing?.close()
    this.viewer?.close()
  }
}
