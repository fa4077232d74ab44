/** The active organ: its label in force, the verdict on it, and a mask made elsewhere. */

import { t } from '../i18n'
import type { OrganTask, Verdict } from '../api'
import { button, h, replace, select, swatch, title, type Child } from '../dom'
import { attempt } from '../notices'
import { nextUnjudged } from './urgency'
import { describeVersion } from './texts'
import type { Workspace } from './workspace'

export class OrganPanel {
  readonly element = h('section', { class: 'organ-detail', 'aria-label': t('Active organ') })
  /** What was entered and not sent yet, by organ. */
  private readonly errorType = new Map<string, string>()
  private readonly note = new Map<string, string>()

  constructor(
    private readonly space: Workspace,
    private readonly uploadMask: (organ: string, file: File) => void,
  ) {}

  draw(): void {
    const { organ, locked, work } = this.space
    const task = this.space.organTask(organ.name)
    const version = work.inForce(organ.name)
    replace(
      this.element,
      h('h2', {}, swatch(organ.color), title(organ.name)),
      h('p', { class: 'quiet' }, version ? describeVersion(version) : t('No label yet')),
      h('p', {}, t('Drawn now: '), h('output', { 'aria-label': t('Volume') }, `${work.viewer.editor.volume(organ.label).toFixed(2)} ml`)),
      version?.source === 'original' && h('p', {}, t('An original label stays in force: what you draw is kept beside it.')),
      !locked && (task ? this.verdictForm(task) : h('p', { class: 'quiet' }, t('This task asks for no verdict on this organ.'))),
      !locked && this.uploadField(),
    )
  }

  private verdictForm(task: OrganTask): Child {
    const name = task.organ
    const types = this.space.context.errorTypes.map((one) => [one.code, `${one.group === 'ground_truth' ? t('Ground truth') : t('Pseudo label')}: ${one.title}`] as const)
    const note = h('input', {
      value: this.enteredNote(task),
      maxlength: 2000,
      oninput: () => this.note.set(name, note.value),
    })
    return [
      select(t('Error type'), [['', t('none')], ...types], this.enteredErrorType(task), (code) => this.errorType.set(name, code)),
      h('label', { class: 'field' }, t('Note'), note),
      h(
        'div',
        { class: 'row' },
        button(t('Confirm organ'), () => this.judge('confirmed'), { key: 'Enter' }),
        button(t('Needs revision'), () => this.judge('needs_revision'), { key: 'w' }),
        task.verdict && button(t('Take back'), () => this.judge(null), { label: t('Take back the verdict on {organ}', { organ: title(name) }) }),
      ),
    ]
  }

  private enteredErrorType(task: OrganTask): string {
    return this.errorType.get(task.organ) ?? task.error_type ?? ''
  }

  private enteredNote(task: OrganTask): string {
    return this.note.get(task.organ) ?? task.note
  }

  private uploadField(): HTMLElement {
    const name = this.space.organ.name
    const input = h('input', {
      type: 'file',
      accept: '.nii.gz,.gz',
      'aria-label': t('Mask of {organ} made elsewhere', { organ: title(name) }),
      onchange: () => {
        const file = input.files?.[0]
        input.value = '' // so that the same file can be chosen again
        if (file) this.uploadMask(name, file)
      },
    })
    return h('label', { class: 'field' }, t('Upload a mask made elsewhere'), input)
  }

  /** null takes the verdict back. */
  judge(verdict: Verdict | null): void {
    const task = this.space.organTask(this.space.organ.name)
    if (this.space.locked || !task) return
    const errorType = verdict !== 'needs_revision' ? '' : this.enteredErrorType(task)
    const { work } = this.space
    attempt(async () => {
      await work.judge(task.organ, verdict, errorType, verdict ? this.enteredNote(task) : '')
      if (verdict === 'confirmed') this.space.activateNamed(nextUnjudged(work.detail.organs)?.organ)
    })
  }
}
