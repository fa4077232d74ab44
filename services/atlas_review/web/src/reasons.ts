/** Why a case stands where it does in the list: the organs that drive its place. */

import { ORDERS, type OrganTask, type Task } from './api'
import { title } from './dom'

const SHOWN_ORGANS = 3

export function drivers(task: Task): OrganTask[] {
  return task.organs
    .filter((one) => one.weight > 0)
    .sort((a, b) => b.weight - a.weight)
    .slice(0, SHOWN_ORGANS)
}

/** What one organ added to its case's place, in the unit of the list. */
export function weightOf(task: Task, organ: OrganTask): string {
  const { unit, digits } = ORDERS[task.ranked_by]
  return `${organ.weight.toFixed(digits)}${unit}`
}

export function because(task: Task): string {
  return drivers(task)
    .map((one) => `${title(one.organ)} ${weightOf(task, one)}`)
    .join(', ')
}
