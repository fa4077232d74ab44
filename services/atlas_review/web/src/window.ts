/** The name of this window, by which the server tells it from others of the same user. */

const KEY = 'atlas-review-window'
const BYTES = 16

// The storage holds the name only while no page is shown: a copy of this tab starts without it.
const kept = sessionStorage.getItem(KEY)
sessionStorage.removeItem(KEY)
addEventListener('pagehide', () => sessionStorage.setItem(KEY, WINDOW))

function random(): string {
  return [...crypto.getRandomValues(new Uint8Array(BYTES))].map((one) => one.toString(16).padStart(2, '0')).join('')
}

/** Stays through a reload. */
export const WINDOW: string = kept ?? random()
