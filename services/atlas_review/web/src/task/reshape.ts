/** Operations on the active organ as a whole, and the region that grows from a spot. */

import { t } from '../i18n'
import { button, h, replace } from '../dom'
import { attempt, say } from '../notices'
import type { Block } from '../views/planes'
import type { Vec3 } from '../views/grid'
import { connectedHint, NOTHING_CHANGED } from './texts'
import { largest, withoutHoles, withoutIslands } from '../voxels/components'
import { CUT_OFF, grow, shrink, smooth } from '../voxels/morphology'
import type { Solid } from '../voxels/solid'
import type { Turns } from '../voxels/turns'
import type { Workspace } from './workspace'

/** Smaller parts are islands. */
const ISLAND_ML = 1
const MM3_PER_ML = 1000
const TOLERANCES = [5, 10, 15, 20, 30, 40, 60, 80, 120, 200]
const STEP_MM = 2

export class Reshape {
  readonly element = h('details', { class: 'folded reshape' })
  private readonly step = h('input', { type: 'number', min: '0.5', max: '20', step: '0.5', value: STEP_MM, 'aria-label': t('Millimetres') })
  private readonly reach = h('input', { type: 'number', min: '5', max: '150', step: '5', value: '40', 'aria-label': t('Reach in millimetres'), onchange: () => this.growAgain() })
  private tolerance = 3
  private seed: Vec3 | null = null
  private region: Block | null = null
  /** Number of the region that was asked for last: an older one is not shown. */
  private asked = 0
  private readonly told = h('output', { 'aria-label': t('Region') })

  constructor(private readonly space: Workspace) {}

  draw(): void {
    const { locked } = this.space
    const act = (text: string, work: (organ: Solid) => Turns<Uint8Array>, mm: () => number = () => 0): HTMLElement => {
      const element = button(text, () => attempt(() => this.reshape(work, mm())))
      element.disabled = locked
      return element
    }
    const mm = (): number => Math.max(Number(this.step.value) || STEP_MM, 0)
    const islands = (organ: Solid): Turns<Uint8Array> => {
      const ml = organ.spacing[0] * organ.spacing[1] * organ.spacing[2]
      return withoutIslands(organ, (ISLAND_ML * MM3_PER_ML) / ml)
    }
    const accept = button(t('Take region'), () => this.accept(), { key: 'Enter' })
    accept.disabled = locked || !this.region
    const open = this.element.open
    replace(
      this.element,
      h('summary', {}, t('Reshape')),
      h('label', { class: 'field inline' }, t('by'), this.step, 'mm'),
      h('div', { class: 'row' }, act('Grow', (organ) => grow(organ, mm()), mm), act('Shrink', (organ) => shrink(organ, mm()), mm), act('Smooth', (organ) => smooth(organ, mm()), () => CUT_OFF * mm())),
      h('div', { class: 'row' }, act('Largest part', largest), act(t('Remove islands < {ml} ml', { ml: ISLAND_ML }), islands), act('Fill holes', withoutHoles)),
      h('label', { class: 'field inline' }, t('Region within'), this.reach, 'mm'),
      h('div', { class: 'row' }, accept, this.told),
    )
    this.element.open = open
  }

  private async reshape(work: (organ: Solid) => Turns<Uint8Array>, mm: number): Promise<void> {
    if (!this.space.locked && !(await this.space.work.viewer.editor.reshape(work, mm))) say(NOTHING_CHANGED)
  }

  // --- the region tool ----------------------------------------------------------------------------

  /** Show what would grow from a voxel. */
  grow(seed: Vec3): void {
    if (this.space.locked) return
    this.seed = seed
    this.growAgain()
  }

  private growAgain(): void {
    const { seed } = this
    if (!seed) return
    const mine = ++this.asked
    attempt(async () => {
      const { viewer } = this.space.work
      const tolerance = TOLERANCES[this.tolerance]!
      const region = await viewer.editor.region(seed, tolerance, Number(this.reach.value))
      if (mine !== this.asked) return
      this.region = region
      viewer.showPreview(region)
      this.told.textContent = region ? connectedHint(viewer.editor.volumeOf(region.voxels), tolerance, viewer.editor.range !== null) : ''
      this.draw()
    })
  }

  /** More or fewer Hounsfield units around those of the spot; false: there is no region. */
  stepTolerance(by: number): boolean {
    if (!this.seed) return false
    this.tolerance = Math.min(Math.max(this.tolerance + by, 0), TOLERANCES.length - 1)
    this.growAgain()
    return true
  }

  /** The region becomes part of the organ; false: there is none. */
  accept(): boolean {
    const { region } = this
    if (!region || this.space.locked) return false
    this.drop()
    if (!this.space.work.viewer.editor.add(region)) say(NOTHING_CHANGED)
    return true
  }

  /** Forget the region. */
  drop(): void {
    this.asked += 1
    this.seed = this.region = null
    this.told.textContent = ''
    this.space.work.viewer.showPreview(null)
    this.draw()
  }
}
