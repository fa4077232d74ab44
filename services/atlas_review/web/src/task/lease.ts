/** The lease of a task: taken when its page opens, renewed while it stays open. */

import { call, Offline, send, type Task } from '../api'
import { WINDOW } from '../window'

/** What the server calls a lease that another window of the same person works with. */
export const OPEN_ELSEWHERE = 'Open elsewhere'

const SHORTEST_MS = 5_000
const LONGEST_MS = 60_000
const RENEWALS = 3 // within one lease, so that a lost renewal does no harm

export class Lease {
  private timer: ReturnType<typeof setTimeout> | undefined
  private ended = true
  private readonly closing = new AbortController()

  constructor(
    private readonly task: string,
    private readonly onLost: (problem: unknown) => void,
  ) {
    addEventListener('pagehide', () => this.leave(), { signal: this.closing.signal })
  }

  /** Take or renew, also (`takeOver`) from another window; throws `Problem` 409 when somebody else holds it. */
  async take(takeOver = false): Promise<Task> {
    const task = await call<Task>('POST', `tasks/${this.task}/lease`, { page: WINDOW, take_over: takeOver })
    if (!task) throw new Error('The server gave no lease')
    this.ended = false
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
      else if (!this.ended) {
        this.ended = true
        this.onLost(error)
      }
    }
  }

  /** Stop renewing: the task has ended. */
  end(): void {
    this.ended = true
    clearTimeout(this.timer)
    this.closing.abort()
  }

  /** This window is closed: another one may go on at once, and the lease expires by itself. */
  leave(): void {
    if (!this.ended) void send(`tasks/${this.task}/leave`, { method: 'POST', json: { page: WINDOW }, keepalive: true }).catch(() => {})
    this.end()
  }
}
