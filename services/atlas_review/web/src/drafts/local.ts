/** Drafts in the browser's database: every stroke goes there at once, so that a closed tab loses nothing. */

import type { Edit } from '../voxels/edits'
import type { Bytes } from '../viewer'

/** Version of each drawn organ's label that the drawing began from; "none" where there was none. */
export type Bases = Record<string, string>

interface Head {
  key: string
  bases: Bases
  /** The server's draft by its checksum, and the same bytes for a start without the server. */
  snapshot: { bytes: Bytes; sha256: string } | null
  /** Milliseconds since 1970. */
  saved_at?: number
}
interface StoredEdit extends Edit {
  key: string
  n: number
}
export interface LocalDraft {
  window: string
  bases: Bases
  snapshot: Head['snapshot']
  edits: Edit[]
  saved_at: number
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

/** Sorts after every name of a window. */
const LAST = '\uffff'

/** The drafts of one user and task in this browser: one of each window; this one's is written. */
export class LocalDrafts {
  private next = 0
  private readonly key: string

  private constructor(
    private readonly database: IDBDatabase,
    private readonly work: string,
    window: string,
  ) {
    this.key = `${work}/${window}`
  }

  static async open(user: string, task: string, window: string): Promise<LocalDrafts> {
    return new LocalDrafts(await openDatabase(), `${user}/${task}`, window)
  }

  /** Those of all windows. */
  async load(): Promise<LocalDraft[]> {
    const { heads, edits } = this.stores('readonly')
    const found = (await done(heads.getAll(IDBKeyRange.bound(this.work, `${this.work}/${LAST}`)))) as Head[]
    const drafts: LocalDraft[] = []
    for (const { key, bases, snapshot, saved_at } of found) {
      const stored = (await done(edits.getAll(range(key)))) as StoredEdit[]
      if (key === this.key) this.next = stored.length ? stored.at(-1)!.n + 1 : 0
      const draft = { window: key.slice(this.work.length + 1), bases, snapshot, edits: stored, saved_at: saved_at ?? 0 }
      if (snapshot || stored.length > 0) drafts.push(draft)
    }
    return drafts
  }

  /** Number of edits ever appended: what a snapshot covers. */
  get position(): number {
    return this.next
  }

  private stores(mode: IDBTransactionMode): { transaction: IDBTransaction; heads: IDBObjectStore; edits: IDBObjectStore } {
    const transaction = this.database.transaction(['heads', 'edits'], mode)
    return { transaction, heads: transaction.objectStore('heads'), edits: transaction.objectStore('edits') }
  }

  private head(bases: Bases, snapshot: Head['snapshot']): Head {
    return { key: this.key, bases, snapshot, saved_at: Date.now() }
  }

  append(edit: Edit, bases: Bases): Promise<void> {
    const { transaction, heads, edits } = this.stores('readwrite')
    const { index, before, after } = edit
    edits.put({ key: this.key, n: this.next++, index, before, after } satisfies StoredEdit)
    const request = heads.get(this.key)
    request.onsuccess = () => {
      const old = request.result as Head | undefined
      heads.put(this.head(bases, old?.snapshot ?? null))
    }
    return committed(transaction)
  }

  /** The server has everything before `position`: keep its bytes in place of those edits. */
  settle(snapshot: Head['snapshot'], bases: Bases, position: number): Promise<void> {
    const { transaction, heads, edits } = this.stores('readwrite')
    heads.put(this.head(bases, snapshot))
    // An empty range is an error to IndexedDB.
    if (position > 0) edits.delete(IDBKeyRange.bound([this.key, 0], [this.key, position], false, true))
    return committed(transaction)
  }

  /** Go on with another window's draft: it becomes this one's as well. */
  adopt({ bases, snapshot, edits: others }: Pick<LocalDraft, 'bases' | 'snapshot' | 'edits'>): Promise<void> {
    const { transaction, heads, edits } = this.stores('readwrite')
    edits.delete(range(this.key))
    heads.put(this.head(bases, snapshot))
    for (const { index, before, after } of others) edits.put({ key: this.key, n: this.next++, index, before, after } satisfies StoredEdit)
    return committed(transaction)
  }

  /** Drop them all. */
  clear(): Promise<void> {
    const { transaction, heads, edits } = this.stores('readwrite')
    heads.delete(IDBKeyRange.bound(this.work, `${this.work}/${LAST}`))
    edits.delete(IDBKeyRange.bound([this.work, 0], [`${this.work}/${LAST}`, Infinity]))
    return committed(transaction)
  }

  close(): void {
    this.database.close()
  }
}

function range(key: string): IDBKeyRange {
  return IDBKeyRange.bound([key, 0], [key, Infinity])
}
