/** Which organ of a task to look at next. */

import type { OrganTask } from '../api'

/** The organ that drives the case's place in the list most. */
export function mostUrgent(organs: readonly OrganTask[]): OrganTask | undefined {
  return [...organs].sort((a, b) => b.weight - a.weight || b.attention_ml - a.attention_ml)[0]
}

/** The same of the organs without a verdict. */
export function nextUnjudged(organs: readonly OrganTask[]): OrganTask | undefined {
  return mostUrgent(organs.filter((one) => one.verdict === null))
}
