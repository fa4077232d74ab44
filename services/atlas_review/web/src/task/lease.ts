/** The lease of a task: taken when its page opens, renewed while it stays open. */

import { call, Offline, type Task } from '../api'

const SHORTEST_MS = 5_000
const LONGEST_MS = 60_000
const RENEWALS = 3 // within one lease, so that a lost renewal does no harm

export class Lease {
  private timer: ReturnType<typeof setTimeout> | undefined
  private ended = false

  constructor(
    private readonly task: string,
    private readonly onLost: (problem: unknown) => void,
  ) {}

  /** Take or renew; throws `Problem` 409 when somebody else holds it. */
  async take(): Promise<Task> {
    const task = await call<Task>('POST', `tasks/${this.task}/lease`)
    if (!task) throw new Error('The server gave no lease')
    this.schedule(task.lease_expires_at)
    return task
  }

  private schedule(expires_at: string | null): void {
    const left_ms = expires_at ? Date.parse(expires_at) - Date.now() : LONGEST_MS * RENEWALS
    this.renewIn(Math.min(Math.max(left_ms / RENEWALS, SHORTEST_MS), LONGEST_MS))
  }

  private renewIn(delay_ms: number): void {
    clearTimeout(this.timer)
    if (!this.ended) this.timer = setTimeout(() => void this.renew(), delay_ms)
  }

  private async renew(): Promise<void> {
    try {
      await this.take()
    } catch (error) {
      // The lease is valid for a while yet: try again before it ends.
      if (error instanceof Offline) this.renewIn(SHORTEST_MS)
      else if (!this.ended) this.onLost(error)
    }
  }

  /** Stop renewing; the lease expires by itself, and the draft stays. */
  end(): void {
    this.ended = true
    clearTimeout(this.timer)
  }
}
