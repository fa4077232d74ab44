/** The server's JSON API (`/api/v1`): types, one way to call it, one way to fail. */

import { said, t } from './i18n'

export interface Session {
  user: string
  roles: string[]
  csrf_token: string
  auth: AuthOffer
  insecure: boolean
}
export interface AuthOffer {
  local: boolean
  oidc: boolean
}
export interface Organ {
  name: string
  label: number
  color: string
}
export interface ErrorType {
  code: string
  group: 'pseudo_label' | 'ground_truth'
  title: string
  description: string
}
export type Verdict = 'confirmed' | 'needs_revision'
/** What a priority list is sorted by, and how numbers of that kind are shown. */
export const ORDERS = {
  disagreement: { title: 'disagreement', unit: '', digits: 2 },
  size: { title: 'attention size', unit: ' ml', digits: 1 },
  attended: { title: 'attended volume', unit: ' ml', digits: 1 },
  relative: { title: 'relative attention', unit: '', digits: 2 },
} as const
export type RankBy = keyof typeof ORDERS
export interface OrganTask {
  organ: string
  attention_ml: number
  /** null: all models agree that it is absent, or it was not counted. */
  disagreement: number | null
  /** What it added to the case's place, in the unit of the list's order. */
  weight: number
  verdict: Verdict | null
  error_type: string | null
  note: string
}
export interface Task {
  id: number
  case_id: string
  dataset: string
  rank: number
  ranked_by: RankBy
  disagreement: number | null
  attention_ml: number
  state: string
  assignee: string | null
  lease_expires_at: string | null
  second_reader: boolean
  organs: OrganTask[]
  updated_at: string
}
export interface LabelVersion {
  id: string
  organ: string
  source: string
  author: string | null
  created_at: string
  base: string | null
  sha256: string
  voxels: number
  volume_ml: number
  url: string
  in_force: boolean
}
/** States of a task, in the order of its life; the FINISHED ones end it. */
export const TASK_STATES = ['open', 'leased', 'second_reading', 'revised', 'confirmed', 'skipped'] as const
export const FINISHED: ReadonlySet<string> = new Set(['revised', 'confirmed', 'skipped'])
export const CASE_STATES = ['not_queued', ...TASK_STATES] as const
interface Volume {
  url: string
  sha256: string
}
export interface Case {
  id: string
  dataset: string
  licence: string | null
  shape: [number, number, number]
  affine: number[][]
  spacing_mm: [number, number, number]
  ct: Volume
  labels: LabelVersion[]
  /** null: no organ has a label yet. */
  label_map: Volume | null
  /** `counts` is false where the organ has an original label, which attention cannot improve. */
  attention: (Volume & { organ: string; attention_ml: number; counts: boolean })[]
  attention_map: Volume | null
  /** Share of the body that no model was shown, since locating ruled organs out. */
  left_out: number
}
export interface TaskDetail extends Task {
  case: Case
  /** Whether the site lets a confirmation cover organs that nobody looked at. */
  confirm_unvisited: boolean
  history: { at: string; who: string; action: string; detail: unknown }[]
}
export interface Queue {
  counts: Record<string, number>
  total: number
  datasets: string[]
  tasks: Task[]
}
/** Connected group of attended voxels of one organ. */
export interface Region {
  organ: string
  voxels: number
  region_ml: number
  attention_ml: number
  centroid_ijk: [number, number, number]
  centroid_mm: [number, number, number]
  /** Its voxel of the highest attention. */
  peak_ijk: [number, number, number]
  peak_mm: [number, number, number]
  /** First and last voxel, both included. */
  box_ijk: [[number, number, number], [number, number, number]]
}
/** What somebody or a model says of an organ; its mask is cropped to what it fills. */
export interface Shape {
  id: string
  kind: 'original' | 'revised' | 'proposal' | 'pseudo' | 'earlier' | 'member'
  /** Of a member; else empty. */
  model: string
  author: string | null
  in_force: boolean
  /** null: not counted. */
  volume_ml: number | null
  url: string
}
/** What somebody said about a case, an organ of it, or a voxel of the CT. */
export interface Comment {
  author: string
  text: string
  organ: string | null
  voxel_ijk: [number, number, number] | null
  created_at: string
}
export interface CaseBrief {
  id: string
  dataset: string
  state?: string | null
  /** Its newest task; null: it never had one. */
  task_id: number | null
  flagged: boolean
}
export interface Statistics {
  cases_by_state: Record<string, number>
  attention_by_dataset: Record<string, { case_id: string; attention_ml: number; disagreement: number | null; in_top_share: boolean }[]>
  top_share: number
  organ_volumes: Record<string, { count: number; q1: number; median: number; q3: number; values: number[] }>
  throughput: { annotator: string; tasks: number; seconds: number; by_day: { day: string; tasks: number }[] }[]
}

/** What the server refused (RFC 9457), in the four parts that a person needs. */
export class Problem extends Error {
  readonly status: number
  readonly body: Record<string, unknown>

  constructor(status: number, body: Record<string, unknown>) {
    super(said(text(body.title)) || t('The server answered {status}', { status }))
    this.status = status
    this.body = body
  }

  /** What was refused, with what was expected and found, and what to do about it; of which case. */
  get detail(): string {
    const about = text(this.body.case)
    return about && this.body.what ? `${about}: ${this.refusal}` : this.refusal
  }

  /** The same once: without the case, which its page names. */
  get sentence(): string {
    const whole = this.refusal || this.message
    return whole[0]!.toUpperCase() + whole.slice(1)
  }

  private get refusal(): string {
    const { what, expected, got, remedy, detail } = this.body
    if (!what) return text(detail)
    const values = [text(expected) && `${t('expected')} ${said(text(expected))}`, text(got) && `${t('got')} ${said(text(got))}`].filter(Boolean)
    const sentence = values.length > 0 ? `${said(text(what))} (${values.join(', ')})` : said(text(what))
    return remedy ? `${sentence}; ${said(text(remedy))}` : sentence
  }
}

/** The server could not be reached: nothing was refused, and nothing is lost. */
export class Offline extends Error {
  constructor() {
    super(t('The server could not be reached'))
  }
}

function text(value: unknown): string {
  if (value === null || value === undefined) return ''
  return typeof value === 'string' ? value : JSON.stringify(value)
}

type Listener = () => void
const BASE = '/api/v1'
let csrf = ''
let onLoggedOut: Listener = () => {}
const connection = { lost: false, listeners: new Set<(lost: boolean) => void>() }

export function setCsrf(token: string): void {
  csrf = token
}
export function whenLoggedOut(listener: Listener): void {
  onLoggedOut = listener
}
export function whenConnectionChanges(listener: (lost: boolean) => void): void {
  connection.listeners.add(listener)
}
function setLost(lost: boolean): void {
  if (connection.lost === lost) return
  connection.lost = lost
  connection.listeners.forEach((listener) => listener(lost))
}

/** The path of a URL that is given in full or relative to the API. */
export function path(url: string): string {
  return url.startsWith('/') ? url : `${BASE}/${url}`
}

async function problemOf(response: Response): Promise<Problem> {
  const body: unknown = await response.json().catch(() => ({}))
  return new Problem(response.status, typeof body === 'object' && body ? (body as Record<string, unknown>) : {})
}

export interface Options {
  method?: string
  json?: unknown
  body?: BodyInit
  headers?: Record<string, string>
  keepalive?: boolean
}

/** Fetch from the API; throws `Problem` where the server refuses and `Offline` where none answers. */
export async function send(url: string, options: Options = {}): Promise<Response> {
  const method = options.method ?? 'GET'
  const headers: Record<string, string> = { Accept: 'application/json', ...options.headers }
  if (method !== 'GET') headers['X-CSRF-Token'] = csrf
  if (options.json !== undefined) headers['Content-Type'] = 'application/json'
  const body = options.json === undefined ? options.body : JSON.stringify(options.json)
  let response: Response
  try {
    response = await fetch(path(url), {
      method,
      headers,
      body: body ?? null,
      credentials: 'same-origin',
      keepalive: options.keepalive ?? false,
    })
  } catch {
    setLost(true)
    throw new Offline()
  }
  setLost(false)
  if (response.ok) return response
  const problem = await problemOf(response)
  if (response.status === 401 && url !== 'session') onLoggedOut()
  throw problem
}

export async function get<T>(url: string): Promise<T> {
  return (await (await send(url)).json()) as T
}

/** Send JSON and read JSON; null for an empty response (204). */
export async function call<T>(method: string, url: string, json: unknown = {}): Promise<T | null> {
  const response = await send(url, method === 'DELETE' ? { method } : { method, json })
  return response.status === 204 ? null : ((await response.json()) as T)
}

export function query(values: Record<string, string | number | boolean | null | undefined>): string {
  const parameters = new URLSearchParams()
  for (const [name, value] of Object.entries(values)) {
    if (value !== '' && value !== null && value !== undefined) parameters.set(name, String(value))
  }
  const encoded = parameters.toString()
  return encoded ? `?${encoded}` : ''
}
