/** The next case: one way to get it, from the queue and from a case alike. */

import { call, type Task } from './api'
import { say } from './notices'

export interface NextFilter {
  dataset?: string
  organ?: string
}

const KEPT = 'next-filter'

/** Filters of the queue also choose the next case; they last as long as the tab. */
export function keepFilter(filter: NextFilter): void {
  sessionStorage.setItem(KEPT, JSON.stringify(filter))
}

export function keptFilter(): NextFilter {
  return JSON.parse(sessionStorage.getItem(KEPT) ?? '{}') as NextFilter
}

export async function goToNext(): Promise<void> {
  const filter = Object.fromEntries(Object.entries(keptFilter()).filter(([, value]) => value))
  const task = await call<Task>('POST', 'queue/next', filter)
  if (task) location.hash = `#/task/${task.id}`
  else say('Nothing is left in the queue for these filters.')
}
