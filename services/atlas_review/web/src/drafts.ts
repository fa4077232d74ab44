/**
 * Unsent work: every stroke goes into the browser's database at once, and the whole map to the server
 * soon after. A closed tab loses nothing, and another computer can go on.
 */

import { Offline, Problem, send } from './api'
import type { Edit } from './edits'
import type { Bytes } from './viewer'

/** Version of each drawn organ's label that the drawing began from; "none" where there was none. */
export type Bases = Record<string, string>

interface Head {
  key: string
  bases: Bases
  /** The server's draft by its checksum, and the same bytes for a start without the server. */
  snapshot: { bytes: Bytes; sha256: string } | null
}
interface StoredEdit extends Edit {
  key: string
  n: number
}
export interface LocalDraft {
  bases: Bases
  snapshot: Head['snapshot']
  edits: Edit[]
}
export interface ServerDraft {
  bytes: Bytes
  sha256: string
  bases: Bases
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })
}

function committed(transaction: IDBTransaction): Promise<void> {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve()
    transaction.onabort = transaction.onerror = () => reject(transaction.error)
  })
}

function openDatabase(): Promise<IDBDatabase> {
  const request = indexedDB.open('atlas-review', 1)
  request.onupgradeneeded = () => {
    request.result.createObjectStore('heads', { keyPath: 'key' })
    request.result.createObjectStore('edits', { keyPath: ['key', 'n'] })
  }
  return done(request)
}

/** The draft of one user and task in this browser. */
export class LocalDrafts {
  private next = 0

  private constructor(
    private readonly database: IDBDatabase,
    private readonly key: string,
  ) {}

  static async open(user: string, task: string): Promise<LocalDrafts> {
    return new LocalDrafts(await openDatabase(), `${user}/${task}`)
  }

  private get range(): IDBKeyRange {
    return IDBKeyRange.bound([this.key, 0], [this.key, Infinity])
  }

  async load(): Promise<LocalDraft | null> {
    const transaction = this.database.transaction(['heads', 'edits'])
    const head = (await done(transaction.objectStore('heads').get(this.key))) as Head | undefined
    const edits = (await done(transaction.objectStore('edits').getAll(this.range))) as StoredEdit[]
    this.next = edits.length ? edits.at(-1)!.n + 1 : 0
    return head ? { bases: head.bases, snapshot: head.snapshot, edits } : null
  }

  /** Number of edits ever appended: what a snapshot covers. */
  get position(): number {
    return this.next
  }

  append(edit: Edit, bases: Bases): Promise<void> {
    const transaction = this.database.transaction(['heads', 'edits'], 'readwrite')
    const heads = transaction.objectStore('heads')
    const { index, before, after } = edit
    transaction.objectStore('edits').put({ key: this.key, n: this.next++, index, before, after } satisfies StoredEdit)
    const request = heads.get(this.key)
    request.onsuccess = () => {
      const old = request.result as Head | undefined
      heads.put({ key: this.key, bases, snapshot: old?.snapshot ?? null } satisfies Head)
    }
    return committed(transaction)
  }

  /** The server has everything before `position`: keep its bytes in place of those edits. */
  settle(snapshot: Head['snapshot'], bases: Bases, position: number): Promise<void> {
    const transaction = this.database.transaction(['heads', 'edits'], 'readwrite')
    transaction.objectStore('heads').put({ key: this.key, bases, snapshot } satisfies Head)
    // An empty range is an error to IndexedDB.
    const covered = position > 0 && IDBKeyRange.bound([this.key, 0], [this.key, position], false, true)
    if (covered) transaction.objectStore('edits').delete(covered)
    return committed(transaction)
  }

  clear(): Promise<void> {
    const transaction = this.database.transaction(['heads', 'edits'], 'readwrite')
    transaction.objectStore('heads').delete(this.key)
    transaction.objectStore('edits').delete(this.range)
    return committed(transaction)
  }

  close(): void {
    this.database.close()
  }
}

/** The draft that the server keeps, or null. */
export async function fetchDraft(task: string): Promise<ServerDraft | null> {
  try {
    const response = await send(`tasks/${task}/draft`)
    const bases = JSON.parse(response.headers.get('X-Base') ?? '{}') as Bases
    const sha256 = (response.headers.get('ETag') ?? '').replaceAll(/W\/|"/g, '')
    return { bytes: new Uint8Array(await response.arrayBuffer()), sha256, bases }
  } catch (error) {
    if (error instanceof Problem && error.status === 404) return null
    throw error
  }
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
        headers: { 'X-Base': JSON.stringify(bases), 'Content-Type': 'application/gzip' },
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
