/** Going to the next case, from the queue and from a case alike. */

import { t } from './i18n'
import { call, type Task } from './api'
import { say } from './notices'

export interface NextFilter {
  dataset?: string
  organ?: string
}

const STORAGE_KEY = 'next-filter'

/** The filters of the queue also apply to the next case; they are kept as long as the tab. */
export function keepFilter(filter: NextFilter): void {
  sessionStorage.setItem(STORAGE_KEY, JSON.stringify(filter))
}

export function keptFilter(): NextFilter {
  return JSON.parse(sessionStorage.getItem(STORAGE_KEY) ?? '{}') as NextFilter
}

export async function goToNext(): Promise<void> {
  const filter = Object.fromEntries(Object.entries(keptFilter()).filter(([, value]) => value))
  const task = await call<Task>('POST', 'queue/next', filter)
  if (task) location.hash = `#/task/${task.id}`
  else say(t('The queue has no case left for these filters.'))
}
