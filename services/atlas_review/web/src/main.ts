import { t } from './i18n'
import './style.css'
import {
  call,
  get,
  Offline,
  Problem,
  send,
  setCsrf,
  whenConnectionChanges,
  whenLoggedOut,
  type AuthOffer,
  type ErrorType,
  type Organ,
  type Session,
} from './api'
import type { Context, OpenPage, Page } from './context'
import { button, h, replace } from './dom'
import { setKeys, showHelp, startKeys } from './keys'
import { attempt, Banner, banners, showError } from './notices'
import { preferences } from './preferences'
import { openAtlas } from './pages/atlas'
import { openGallery } from './pages/gallery'
import { askToLogIn } from './pages/login'
import { openQueue } from './pages/queue'
import { openTask } from './pages/task'

const PAGES: Record<string, OpenPage> = {
  queue: openQueue,
  task: openTask,
  atlas: openAtlas,
  gallery: openGallery,
}
const LINKS = [
  ['queue', t('Queue')],
  ['atlas', t('Atlas')],
  ['gallery', t('Gallery')],
] as const
const RETRY_MS = 3000

const nav = h('nav', { 'aria-label': t('Pages of the site') })
const who = h('div', { class: 'who' })
const main = h('main', { id: 'main', tabindex: '-1' })
document.body.append(
  h('header', {}, h('a', { class: 'brand', href: '#/queue' }, 'Atlas Loop'), nav, who, preferences()),
  banners,
  main,
)

let context: Context | null = null
let page: Page = {}
let shown = 0

function goTo(name: string): () => void {
  return () => {
    location.hash = `#/${name}`
  }
}

startKeys([
  { keys: ['?'], does: t('this list'), group: t('Everywhere'), run: showHelp },
  { keys: ['Q'], does: t('queue'), group: t('Everywhere'), run: goTo('queue') },
  { keys: ['A'], does: t('atlas'), group: t('Everywhere'), run: goTo('atlas') },
  { keys: ['G'], does: t('gallery'), group: t('Everywhere'), run: goTo('gallery') },
])

async function closePage(): Promise<void> {
  setKeys([])
  const old = page
  page = {}
  await old.close?.()
}

/** Show the page that the address names; the newest address wins. */
async function show(): Promise<void> {
  const mine = ++shown
  if (!context) return
  const [name = '', argument = ''] = location.hash.replace(/^#\//, '').split('/')
  const open = PAGES[name]
  if (!open) {
    location.replace('#/queue')
    return
  }
  await closePage()
  replace(nav, LINKS.map(([to, text]) => h('a', { href: `#/${to}`, 'aria-current': to === name ? 'page' : null }, text)))
  replace(main, h('p', { role: 'status' }, t('Loading…')))
  main.dataset.page = name
  try {
    const opened = await open(main, context, decodeURIComponent(argument))
    if (mine === shown) page = opened
    else await opened.close?.()
  } catch (error) {
    if (mine === shown) replace(main, h('h1', {}, t('This page could not be shown')), button(t('Try again'), () => void show()))
    showError(error)
  }
}

async function enter(session: Session): Promise<void> {
  setCsrf(session.csrf_token)
  const [{ organs }, { error_types }] = await Promise.all([
    get<{ organs: Organ[] }>('organs'),
    get<{ error_types: ErrorType[] }>('error-types'),
  ])
  context = { session, organs, errorTypes: error_types }
  const logOut = async (): Promise<void> => {
    await closePage()
    await call('DELETE', 'session')
    location.reload()
  }
  replace(
    who,
    session.insecure && h('span', { class: 'state skipped', title: t('Anybody on this computer can change labels') }, t('insecure')),
    h('span', {}, session.user),
    h('span', { class: 'roles' }, session.roles.map((role) => t(role)).join(', ')),
    button(t('Keys'), showHelp, { key: '?' }),
    button(t('Log out'), () => attempt(logOut)),
  )
  await show()
}

/** Ask for a login where there is no session; the address stays, so that it leads where it was meant to. */
async function start(): Promise<void> {
  try {
    await enter(await get<Session>('session'))
  } catch (error) {
    if (error instanceof Problem && error.status === 401) {
      main.dataset.page = 'login'
      const offered = error.body.auth as AuthOffer | undefined
      await enter(await askToLogIn(main, offered ?? { local: true, oidc: false }))
    } else if (error instanceof Offline) {
      setTimeout(() => void start(), RETRY_MS)
    } else {
      showError(error)
    }
  }
}

const connection = new Banner('error')
whenConnectionChanges((lost) => {
  if (!lost) return connection.set()
  connection.set('The connection to the server is lost. Your drawing is kept in this browser and sent when it is back.')
  const timer = setInterval(() => {
    send('/healthz').then(() => clearInterval(timer), () => {})
  }, RETRY_MS)
})

const loggedOut = new Banner('warning')
whenLoggedOut(() => {
  loggedOut.set('You are logged out. Your drawing is kept in this browser. ', button(t('Log in again'), () => location.reload()))
})

addEventListener('hashchange', () => void show())
// A page that comes back as it was left has given up its lease.
addEventListener('pageshow', (event) => event.persisted && location.reload())
void start()
