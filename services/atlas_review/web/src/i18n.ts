/** The language of the page: English texts are the keys, and a language file holds their translations. */

import { de } from './languages/de'
import { de as refusalsInGerman } from './languages/refusals/de'

/** Text in English → in the language; `{name}` stands for a value. */
export type Translations = Readonly<Record<string, string>>

const LANGUAGES: Readonly<Record<string, Translations>> = { en: {}, de }
/** What the server says: `{}` stands for a value, in the order of the English text. */
const REFUSALS: Readonly<Record<string, Translations>> = { de: refusalsInGerman }
export const LANGUAGE_NAMES = [
  ['en', 'English'],
  ['de', 'Deutsch'],
] as const

const KEY = 'atlas-review-language'

/** What was chosen here, or else what the browser asks for. */
function chosen(): string {
  const wanted = [localStorage.getItem(KEY), ...navigator.languages.map((one) => one.split('-')[0]!)]
  return wanted.find((one): one is string => one !== null && one in LANGUAGES) ?? 'en'
}

export const language = chosen()
const texts = LANGUAGES[language]!
document.documentElement.lang = language

/** Show the page in another language from now on. */
export function setLanguage(name: string): void {
  localStorage.setItem(KEY, name)
  location.reload()
}

/** A text in the page's language; one without a translation stays English. */
export function t(text: string, values: Readonly<Record<string, string | number>> = {}): string {
  return (texts[text] ?? text).replaceAll(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole))
}

const patterns = Object.entries(REFUSALS[language] ?? {}).map(([english, translation]) => {
  const fixed = english.split('{}').map((part) => part.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&'))
  return { pattern: new RegExp(`^${fixed.join('(.+)')}$`, 's'), translation }
})

/** A text of the server's in the page's language; one without a translation stays English. */
export function said(text: string): string {
  for (const { pattern, translation } of patterns) {
    const values = pattern.exec(text)?.slice(1)
    if (values) return translation.replaceAll('{}', () => t(values.shift()!.replaceAll('_', ' ')))
  }
  return text
}

/** A time in the page's language. */
export function when(at: string | number): string {
  const date = new Date(at)
  return Number.isNaN(date.getTime()) ? String(at) : date.toLocaleString(language)
}

/** A heading or the text of a button, as a part of a sentence. */
export function inSentence(text: string): string {
  return language === 'en' ? text.toLowerCase() : text
}

/** A word as a heading or the text of a button. */
export function heading(text: string): string {
  return text[0]!.toUpperCase() + text.slice(1)
}
