/** Which organ of a task to look at next. */

import type { OrganTask } from '../api'

export function mostAttended(organs: readonly OrganTask[]): OrganTask | undefined {
  return [...organs].sort((a, b) => b.attention_ml - a.attention_ml)[0]
}

/** Of the organs without a verdict, the one with most attention. */
export function nextUnjudged(organs: readonly OrganTask[]): OrganTask | undefined {
  return mostAttended(organs.filter((one) => one.verdict === null))
}
