/** Sends the drawing to the server soon after each stroke: another computer can go on. */

import { Offline, Problem, send } from '../api'
import type { Edit } from '../voxels/edits'
import type { Bytes } from '../viewer'
import { WINDOW } from '../window'
import type { Bases, LocalDrafts } from './local'

/** The bytes of a draft that the server keeps, and what it was made from. */
export async function fetchDraft(url: string): Promise<{ bytes: Bytes; sha256: string; bases: Bases }> {
  const response = await send(url)
  const bases = JSON.parse(response.headers.get('X-Base') ?? '{}') as Bases
  const sha256 = (response.headers.get('ETag') ?? '').replaceAll(/W\/|"/g, '')
  return { bytes: new Uint8Array(await response.arrayBuffer()), sha256, bases }
}

const QUIET_MS = 1200
const RETRY_MS = 4000

export type SaveState = 'clean' | 'saving' | 'local' | 'server'

/** Sends the map to the server when drawing pauses, and retries until it arrives. */
export class Autosave {
  private timer: ReturnType<typeof setTimeout> | undefined
  private running: Promise<void> | null = null
  private stopped = false

  constructor(
    private readonly task: string,
    private readonly local: LocalDrafts,
    private readonly current: () => { bytes: Promise<Bytes>; bases: Bases },
    private readonly report: (state: SaveState, problem?: unknown) => void,
  ) {}

  /** Keep an edit; resolves when it is safe in this browser. */
  async keep(edit: Edit, bases: Bases): Promise<void> {
    this.report('saving')
    this.schedule(QUIET_MS)
    await this.local.append(edit, bases)
  }

  schedule(delay_ms: number): void {
    clearTimeout(this.timer)
    if (!this.stopped) this.timer = setTimeout(() => void this.flush(), delay_ms)
  }

  /** Send now; one at a time. */
  flush(): Promise<void> {
    clearTimeout(this.timer)
    this.running ??= this.save().finally(() => {
      this.running = null
    })
    return this.running
  }

  private async save(): Promise<void> {
    const position = this.local.position
    const { bytes: encoding, bases } = this.current()
    try {
      const bytes = await encoding
      const response = await send(`tasks/${this.task}/draft`, {
        method: 'PUT',
        body: new Blob([bytes], { type: 'application/gzip' }),
        headers: { 'X-Base': JSON.stringify(bases), 'X-Page': WINDOW, 'Content-Type': 'application/gzip' },
      })
      const { sha256 } = (await response.json()) as { sha256: string }
      if (this.stopped) return
      await this.local.settle({ bytes, sha256 }, bases, position)
      if (this.local.position === position) this.report('server')
      else this.schedule(QUIET_MS)
    } catch (error) {
      if (this.stopped) return
      this.report('local', error)
      if (error instanceof Offline || (error instanceof Problem && error.status >= 500)) this.schedule(RETRY_MS)
    }
  }

  /** Stop saving: the work was handed in, or the page is closed. */
  async stop(): Promise<void> {
    this.stopped = true
    clearTimeout(this.timer)
    await this.running
  }
}
