/** How a case was looked at, kept through a reload of its page (not longer, and only in this tab). */

import type { Scene, Tool, WindowName } from '../viewer'

export interface Remembered {
  task: string
  scene: Scene
  window: WindowName | null
  tool: Tool
  penSize: number
  organ: string
}

const KEY = 'atlas-review-view-2'
/** Only the first page that this document shows can have been reloaded. */
let reloaded = performance.getEntriesByType('navigation').some((entry) => (entry as PerformanceNavigationTiming).type === 'reload')

export function remember(state: Remembered): void {
  sessionStorage.setItem(KEY, JSON.stringify(state))
}

/** What a reload of this task's page brings back, or null. */
export function recall(task: string): Remembered | null {
  if (!reloaded) return null
  reloaded = false
  const kept = sessionStorage.getItem(KEY)
  const state = kept ? (JSON.parse(kept) as Remembered) : null
  return state?.task === task ? state : null
}
