/** Language and colours of the page, chosen in its head and kept in this browser. */

import { h, select } from './dom'
import { language, LANGUAGE_NAMES, setLanguage, t } from './i18n'

const KEY = 'atlas-review-theme'

/** Light, dark, or ('') as the system. */
function setTheme(theme: string): void {
  document.documentElement.style.colorScheme = theme
  if (theme) localStorage.setItem(KEY, theme)
  else localStorage.removeItem(KEY)
}

export function preferences(): HTMLElement {
  const theme = localStorage.getItem(KEY) ?? ''
  setTheme(theme)
  const themes = [['', t('as the system')], ['light', t('light')], ['dark', t('dark')]] as const
  return h('div', { class: 'preferences' }, select(t('Language'), LANGUAGE_NAMES, language, setLanguage), select(t('Theme'), themes, theme, setTheme))
}
