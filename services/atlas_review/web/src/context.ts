/** What every page needs: who is signed in, and the vocabulary of the atlas. */

import type { ErrorType, Organ, Session } from './api'

export interface Context {
  session: Session
  organs: Organ[]
  errorTypes: ErrorType[]
}

/** A page that is shown; `close` ends its timers and frees its memory. */
export interface Page {
  close?: () => void | Promise<void>
}

/** `left` is aborted where the page is left before it is open. */
export type OpenPage = (main: HTMLElement, context: Context, argument: string, left: AbortSignal) => Promise<Page>

export function colourOf(context: Context, organ: string): string {
  return context.organs.find((one) => one.name === organ)?.color ?? '#888888'
}

export function may(context: Context, ...roles: string[]): boolean {
  return context.session.roles.some((role) => roles.includes(role))
}
