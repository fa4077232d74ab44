/** What the parts of the task page share: the work on the task, and which organ is active. */

import type { Organ, OrganTask } from '../api'
import type { Context } from '../context'
import type { Work } from './work'

export class Workspace {
  /** Set once the volumes are loaded; no part is drawn before. */
  work!: Work
  /** The organ that the pen draws and that a verdict is about. */
  organ: Organ
  /** Called when another organ has become the active one. */
  onOrgan: () => void = () => {}

  constructor(readonly context: Context) {
    this.organ = context.organs[0]!
  }

  /** Whether the task can only be looked at. */
  get locked(): boolean {
    return this.work.readOnly !== null
  }

  /** What the task says of an organ; undefined where it asks for no verdict on it. */
  organTask(name: string): OrganTask | undefined {
    return this.work.detail.organs.find((one) => one.organ === name)
  }

  activate(organ: Organ): void {
    this.organ = organ
    this.work.visited.add(organ.name)
    this.work.viewer.setPen(organ)
    this.onOrgan()
  }

  /** Make the organ of this name the active one; without such an organ nothing changes. */
  activateNamed(name: string | undefined): void {
    const organ = this.context.organs.find((one) => one.name === name)
    if (organ) this.activate(organ)
  }

  /** Go to the next organ (or a previous one, where negative); after the last comes the first. */
  stepOrgan(by: number): void {
    const all = this.context.organs
    this.activate(all[(all.indexOf(this.organ) + by + all.length) % all.length]!)
  }
}
