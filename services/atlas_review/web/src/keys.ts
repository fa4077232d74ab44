/** Every key of the page in one table: it acts, and the `?` overlay lists it. */

import { t } from './i18n'
import { h } from './dom'

export interface Key {
  keys: string[]
  does: string
  group: string
  run: (event: KeyboardEvent) => void
  /** Called when the key is released. */
  release?: () => void
}

let global: Key[] = []
let local: Key[] = []

/** `Shift+Enter`, `Ctrl+z`, `[`: modifiers in this order; Shift only where the key itself does not imply it. */
function nameOf(event: KeyboardEvent): string {
  const control = event.ctrlKey || event.metaKey ? 'Ctrl+' : ''
  const named = event.key.length > 1
  const shift = event.shiftKey && (named || control) ? 'Shift+' : ''
  const key = event.key === ' ' ? 'Space' : named || event.shiftKey && !control ? event.key : event.key.toLowerCase()
  return control + shift + key
}

function isTyping(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false
  if (target instanceof HTMLInputElement) return !['checkbox', 'radio', 'range', 'button'].includes(target.type)
  return target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement || target.isContentEditable
}

function onKey(event: KeyboardEvent): void {
  const name = nameOf(event)
  // A focused button keeps Enter and Space, a slider its arrows, as everywhere else.
  const target = event.target
  const onControl = target instanceof HTMLButtonElement || target instanceof HTMLInputElement || target instanceof HTMLAnchorElement
  const own = onControl && (name === 'Enter' || name === 'Space' || (target instanceof HTMLInputElement && event.key.startsWith('Arrow')))
  if (isTyping(target) || document.querySelector('dialog[open]') || own || event.altKey) return
  const key = [...local, ...global].find((one) => one.keys.includes(name))
  if (!key) return
  event.preventDefault()
  if (event.type === 'keyup') key.release?.()
  else if (!event.repeat || !key.release) key.run(event)
}

export function startKeys(keys: Key[]): void {
  global = keys
  addEventListener('keydown', onKey, { capture: true })
  addEventListener('keyup', (event) => {
    const key = local.find((one) => one.release && one.keys.includes(nameOf(event)))
    key?.release?.()
  }, { capture: true })
}

/** The keys of the page that is shown now; each has one meaning there. */
export function setKeys(keys: Key[]): void {
  const names = [...keys, ...global].flatMap((one) => one.keys)
  const twice = names.find((name, at) => names.indexOf(name) < at)
  if (twice) throw new Error(`two meanings of the key ${twice}`)
  local = keys
}

export function showHelp(): void {
  const groups = new Map<string, Key[]>()
  for (const key of [...local, ...global]) groups.set(key.group, [...(groups.get(key.group) ?? []), key])
  const tables = [...groups].map(([group, keys]) =>
    h(
      'section',
      {},
      h('h3', {}, group),
      h(
        'dl',
        { class: 'keys' },
        keys.map((key) => [
          h('dt', {}, key.keys.map((name, i) => [i ? ' ' : '', h('kbd', {}, name)])),
          h('dd', {}, key.does),
        ]),
      ),
    ),
  )
  const dialog = h(
    'dialog',
    { class: 'wide', 'aria-label': t('Keys'), onclose: () => dialog.remove() },
    h('h2', {}, t('Keys')),
    h('div', { class: 'columns' }, tables),
    h('form', { method: 'dialog' }, h('button', { autofocus: true }, t('Close'))),
  )
  document.body.append(dialog)
  dialog.showModal()
}
