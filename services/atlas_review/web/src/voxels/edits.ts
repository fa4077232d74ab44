/** Edits of a label map as lists of voxels, and the history that undoes and redoes them. */

export type Axis = 'axial' | 'coronal' | 'sagittal'

/** Voxels that one action changed; indices into the label map in RAS+ order, x fastest. */
export interface Edit {
  readonly index: Uint32Array<ArrayBuffer>
  readonly before: Uint8Array<ArrayBuffer>
  readonly after: Uint8Array<ArrayBuffer>
}

/** Memory that the history may take; beyond it the oldest edits are dropped. */
const HISTORY_BYTES = 128 * 1024 * 1024
const BYTES_PER_VOXEL = 6

/** What changed from `before` to `after` (same length), or null. Compares four voxels at a time. */
export function difference(before: Uint8Array, after: Uint8Array): Edit | null {
  const words = before.length >>> 2
  const old = new Int32Array(before.buffer, before.byteOffset, words)
  const now = new Int32Array(after.buffer, after.byteOffset, words)
  const found: number[] = []
  const look = (from: number, to: number): void => {
    for (let i = from; i < to; i++) if (before[i] !== after[i]) found.push(i)
  }
  for (let w = 0; w < words; w++) if (old[w] !== now[w]) look(4 * w, 4 * w + 4)
  look(4 * words, before.length)
  if (found.length === 0) return null
  const index = Uint32Array.from(found)
  return { index, before: pick(before, index), after: pick(after, index) }
}

function pick(map: Uint8Array, index: Uint32Array): Uint8Array<ArrayBuffer> {
  const values = new Uint8Array(index.length)
  for (let n = 0; n < index.length; n++) values[n] = map[index[n]!]!
  return values
}

export function put(map: Uint8Array, index: Uint32Array, values: Uint8Array): void {
  for (let n = 0; n < index.length; n++) map[index[n]!] = values[n]!
}

/** The same edit the other way round. */
export function inverse(edit: Edit): Edit {
  return { index: edit.index, before: edit.after, after: edit.before }
}

/** Label values whose set of voxels differs between two maps. */
export function changedLabels(before: Uint8Array, after: Uint8Array): Set<number> {
  const changed = new Set<number>()
  const words = before.length >>> 2
  const old = new Int32Array(before.buffer, before.byteOffset, words)
  const now = new Int32Array(after.buffer, after.byteOffset, words)
  const look = (from: number, to: number): void => {
    for (let i = from; i < to; i++) {
      if (before[i] === after[i]) continue
      changed.add(before[i]!)
      changed.add(after[i]!)
    }
  }
  for (let w = 0; w < words; w++) if (old[w] !== now[w]) look(4 * w, 4 * w + 4)
  look(4 * words, before.length)
  changed.delete(0)
  return changed
}

/** Undo and redo. */
export class History {
  private readonly done: Edit[] = []
  private readonly undone: Edit[] = []
  /** Edits that undid one organ of another edit. */
  private readonly undid = new Map<Edit, { edit: Edit; label: number }>()
  private bytes = 0

  add(edit: Edit): void {
    this.done.push(edit)
    this.undone.length = 0
    this.bytes += edit.index.length * BYTES_PER_VOXEL
    while (this.bytes > HISTORY_BYTES && this.done.length > 1) {
      this.bytes -= this.done.shift()!.index.length * BYTES_PER_VOXEL
    }
  }

  /** The edit to apply for an undo, or null. */
  undo(): Edit | null {
    const edit = this.done.pop()
    if (!edit) return null
    this.undone.push(edit)
    return inverse(edit)
  }

  /** The edit to apply to undo the newest edit of one label, and of no other; it is an edit of its own. null: there is none. */
  undoOf(label: number, map: Uint8Array): Edit | null {
    const gone = new Set<Edit>()
    for (const edit of this.done) {
      const undone = this.undid.get(edit)
      if (undone?.label === label) gone.add(undone.edit)
    }
    for (const edit of [...this.done].reverse()) {
      if (gone.has(edit) || this.undid.has(edit)) continue
      const own = [...edit.index.keys()].filter((n) => (edit.before[n] === label || edit.after[n] === label) && map[edit.index[n]!] === edit.after[n])
      if (own.length === 0) continue
      const undo = {
        index: Uint32Array.from(own, (n) => edit.index[n]!),
        before: Uint8Array.from(own, (n) => edit.after[n]!),
        after: Uint8Array.from(own, (n) => edit.before[n]!),
      }
      this.add(undo)
      this.undid.set(undo, { edit, label })
      return undo
    }
    return null
  }

  redo(): Edit | null {
    const edit = this.undone.pop()
    if (!edit) return null
    this.done.push(edit)
    return edit
  }

  clear(): void {
    this.done.length = this.undone.length = 0
    this.undid.clear()
    this.bytes = 0
  }

  get canUndo(): boolean {
    return this.done.length > 0
  }

  get canRedo(): boolean {
    return this.undone.length > 0
  }
}
