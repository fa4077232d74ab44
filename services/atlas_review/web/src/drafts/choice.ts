/** Which drawing a window goes on with: its own, or another window's. */

import { get } from '../api'
import { type Bases, type LocalDraft } from './local'

/** A draft that the server keeps, of one window. */
export interface ServerDraft {
  page: string
  saved_at: string
  sha256: string
  url: string
}

export interface Candidate {
  window: string
  /** Milliseconds since 1970. */
  saved_at: number
  /** What this browser has of it, which is never older than what the server has. */
  local: LocalDraft | null
  server: ServerDraft | null
}

export async function serverDrafts(task: string): Promise<ServerDraft[]> {
  return (await get<{ drafts: ServerDraft[] }>(`tasks/${task}/drafts`)).drafts
}

/** One for each window that has drawn, the newest first. */
export function candidates(local: readonly LocalDraft[], server: readonly ServerDraft[]): Candidate[] {
  const windows = new Set([...local.map((one) => one.window), ...server.map((one) => one.page)])
  const found = [...windows].map((window): Candidate => {
    const mine = local.find((one) => one.window === window) ?? null
    const theirs = server.find((one) => one.page === window) ?? null
    const unsent = mine !== null && (theirs === null || mine.edits.length > 0 || mine.snapshot?.sha256 === theirs.sha256)
    return {
      window,
      saved_at: theirs && !(mine && mine.edits.length > 0) ? Date.parse(theirs.saved_at) : mine!.saved_at,
      local: unsent ? mine : null,
      server: theirs,
    }
  })
  return found.sort((one, two) => two.saved_at - one.saved_at)
}

/**
 * The drafts among which somebody has to choose, newest first; one: that one; none: there is no draft.
 * A window goes on with its own unless another one has drawn since.
 */
export function choices(all: readonly Candidate[], window: string): Candidate[] {
  const own = all.find((one) => one.window === window)
  const content = (one: Candidate): string => (one.local && one.local.edits.length > 0 ? one.window : (one.local?.snapshot?.sha256 ?? one.server?.sha256 ?? one.window))
  const known = new Set(own ? [content(own)] : [])
  const others = all.filter((one) => {
    if (one === own || known.has(content(one)) || (own && one.saved_at <= own.saved_at)) return false
    known.add(content(one))
    return true
  })
  return [...(own ? [own] : []), ...others].sort((one, two) => two.saved_at - one.saved_at)
}

export type { Bases }
