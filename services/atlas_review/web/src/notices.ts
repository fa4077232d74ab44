/** Messages to the user: banners that stay, notices that disappear, questions. */

import { t } from './i18n'
import { Offline, Problem } from './api'
import { button, h, type Child } from './dom'

export const banners = h('div', { id: 'banners' })
const notices = h('div', { id: 'notices', role: 'status', 'aria-live': 'polite' })
document.body.append(notices)

/** A line at the top that stays until it is set to nothing. */
export class Banner {
  private element: HTMLElement | null = null

  constructor(private readonly kind: 'warning' | 'error') {}

  set(...content: Child[]): void {
    this.element?.remove()
    this.element = null
    if (content.length === 0) return
    this.element = h('div', { class: `banner ${this.kind}`, role: 'alert' }, ...content)
    banners.append(this.element)
  }
}

const SHOWN_MS = 5000

export function say(text: string): void {
  const element = h('div', { class: 'notice' }, text)
  notices.append(element)
  setTimeout(() => element.remove(), SHOWN_MS)
}

/** Show a failure, and for a refusal what was expected and found, and the remedy; it stays until it is dismissed. */
export function showError(error: unknown): void {
  if (error instanceof Offline) return // the banner says so
  const message = error instanceof Error ? error.message : String(error)
  const element: HTMLElement = h(
    'div',
    { class: 'notice error', role: 'alert' },
    h('strong', {}, message),
    error instanceof Problem && h('p', {}, error.detail),
    button(t('Dismiss'), () => element.remove()),
  )
  notices.append(element)
}

/** Run something that may fail; a failure is shown, never swallowed. */
export function attempt(action: () => Promise<unknown>): void {
  action().catch(showError)
}

/** Ask for a text; null when the user cancels. */
export function ask(question: string, field: string, confirm: string, warning = ''): Promise<string | null> {
  return new Promise((resolve) => {
    const input = h('textarea', { required: true, rows: 3, maxlength: 2000 })
    const dialog = h(
      'dialog',
      {
        'aria-label': question,
        onclose: () => {
          dialog.remove()
          resolve(dialog.returnValue === 'yes' && input.value.trim() ? input.value.trim() : null)
        },
      },
      h('h2', {}, question),
      warning && h('p', {}, warning),
      h(
        'form',
        { method: 'dialog' },
        h('label', { class: 'field' }, field, input),
        h(
          'div',
          { class: 'row end' },
          h('button', { value: 'no', formnovalidate: true }, t('Cancel')),
          h('button', { value: 'yes', class: 'primary' }, confirm),
        ),
      ),
    )
    input.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) dialog.querySelector<HTMLButtonElement>('.primary')?.click()
    })
    document.body.append(dialog)
    dialog.showModal()
    input.focus()
  })
}

/** Show a question with several answers; '' when the dialog is closed. */
export function choose(heading: string, content: Child, answers: [value: string, label: string][]): Promise<string> {
  return new Promise((resolve) => {
    const dialog = h(
      'dialog',
      {
        'aria-label': heading,
        onclose: () => {
          dialog.remove()
          resolve(dialog.returnValue)
        },
      },
      h('h2', {}, heading),
      content,
      h(
        'form',
        { method: 'dialog', class: 'row end' },
        answers.map(([value, label], i) => h('button', { value, class: i === 0 ? 'primary' : '' }, label)),
      ),
    )
    document.body.append(dialog)
    dialog.showModal()
  })
}
