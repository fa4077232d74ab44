/** A small way to build elements without markup strings, hence with nothing to escape. */

import { t } from './i18n'

type Value = string | number | boolean | null | undefined | ((event: never) => void)
export type Child = Node | string | number | null | undefined | false | Child[]

function append(parent: Element, child: Child): void {
  if (child === null || child === undefined || child === false) return
  if (Array.isArray(child)) child.forEach((one) => append(parent, one))
  else parent.append(child instanceof Node ? child : String(child))
}

function apply(element: Element, attributes: Record<string, Value>): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue
    if (typeof value === 'function') element.addEventListener(name.slice(2), value as (event: Event) => void)
    else element.setAttribute(name, value === true ? '' : String(value))
  }
}

/** An HTML element; attributes that start with `on` are listeners, false and null are left out. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, Value> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag)
  apply(element, attributes)
  append(element, children)
  return element
}

/** An SVG element, like `h`. */
export function svg<K extends keyof SVGElementTagNameMap>(
  tag: K,
  attributes: Record<string, Value> = {},
  ...children: Child[]
): SVGElementTagNameMap[K] {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag)
  apply(element, attributes)
  append(element, children)
  return element
}

export function replace(parent: Element, ...children: Child[]): void {
  parent.replaceChildren()
  append(parent, children)
}

/** A swatch of an organ's colour, set through the style object: a strict content policy allows that. */
export function swatch(color: string): HTMLElement {
  const element = h('span', { class: 'swatch', 'aria-hidden': 'true' })
  element.style.background = color
  return element
}

/** The head of a table; the names of number columns are right-aligned, as the numbers are. */
export function tableHead(names: readonly string[], numbers: readonly string[]): HTMLElement {
  const cells = names.map((name) => h('th', { scope: 'col', class: numbers.includes(name) ? 'number' : null }, name))
  return h('thead', {}, h('tr', {}, cells))
}

/** `kidney_left` reads "kidney left", in the language of the page. */
export function title(name: string): string {
  return t(name.replaceAll('_', ' '))
}

export function button(
  label: string,
  onclick: () => void,
  more: { key?: string; kind?: string; label?: string } = {},
): HTMLButtonElement {
  return h(
    'button',
    {
      type: 'button',
      class: more.kind,
      'aria-label': more.label ?? label,
      'aria-keyshortcuts': more.key,
      title: more.key ? t('{label} (key {key})', { label: more.label ?? label, key: more.key }) : null,
      onclick,
    },
    label,
    more.key ? h('kbd', { 'aria-hidden': 'true' }, more.key) : null,
  )
}

export function select(
  label: string,
  options: readonly (readonly [value: string, text: string])[],
  value: string,
  onchange: (value: string) => void,
): HTMLLabelElement {
  const box = h('select', { onchange: () => onchange(box.value) })
  for (const [key, text] of options) box.append(h('option', { value: key, selected: key === value }, text))
  return h('label', { class: 'field' }, label, box)
}
