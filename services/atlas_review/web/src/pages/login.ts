import { t } from '../i18n'
import { call, path, Problem, type AuthOffer, type Session } from '../api'
import { h } from '../dom'
import { showError } from '../notices'

/** Show the login form; resolves with the session once somebody has logged in. */
export function askToLogIn(main: HTMLElement, auth: AuthOffer): Promise<Session> {
  return new Promise((resolve) => {
    const user = h('input', { name: 'username', autocomplete: 'username', required: true })
    const password = h('input', { name: 'password', type: 'password', autocomplete: 'current-password', required: true })
    const submit = (event: Event): void => {
      event.preventDefault()
      call<Session>('POST', 'session', { username: user.value, password: password.value })
        .then((session) => session && resolve(session))
        .catch((error: unknown) => {
          const wrong = error instanceof Problem && error.status === 401
          showError(wrong ? new Problem(401, { title: t('User name or password is wrong') }) : error)
          password.select()
        })
    }
    const form = h(
      'form',
      { onsubmit: submit, 'aria-label': t('Log in') },
      h('label', { class: 'field' }, t('User name'), user),
      h('label', { class: 'field' }, t('Password'), password),
      h('button', { class: 'primary' }, t('Log in')),
    )
    const oidc = h('a', { class: 'button', href: path('auth/oidc/login') }, t('Log in with your organisation'))
    const nobody = auth.local || auth.oidc ? '' : t('No account and no single sign-on is set up: ask your administrator.')
    main.replaceChildren(
      h('section', { class: 'login' }, h('h1', {}, t('Atlas Loop review')), auth.local ? form : null, auth.oidc ? oidc : null, nobody),
    )
    if (auth.local) user.focus()
  })
}
