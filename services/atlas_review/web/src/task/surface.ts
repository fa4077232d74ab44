/** A dialog with the surfaces of the organs that are shown, as they are drawn now. */

import { t } from '../i18n'
import { button, h } from '../dom'
import { attempt, say } from '../notices'
import type { Side, SurfaceScene } from '../surface/scene'
import { inTurns } from '../voxels/turns'
import type { Workspace } from './workspace'

const SIDES: readonly (readonly [Side, string])[] = [
  ['front', t('From the front')],
  ['back', t('From behind')],
  ['right', t('From the right')],
  ['left', t('From the left')],
  ['above', t('From above')],
  ['below', t('From below')],
]
const TURN_DEGREES = 15
const ZOOM = 1.2
/** What each key does to the surfaces. */
const KEYS: Readonly<Record<string, (scene: SurfaceScene) => void>> = {
  ArrowLeft: (scene) => scene.turn(TURN_DEGREES, 0),
  ArrowRight: (scene) => scene.turn(-TURN_DEGREES, 0),
  ArrowUp: (scene) => scene.turn(0, -TURN_DEGREES),
  ArrowDown: (scene) => scene.turn(0, TURN_DEGREES),
  '+': (scene) => scene.zoom(ZOOM),
  '-': (scene) => scene.zoom(1 / ZOOM),
}

export function showSurfaces(space: Workspace): void {
  if (document.createElement('canvas').getContext('webgl2')) attempt(() => open(space))
  else say(t('This browser has no WebGL, which the surfaces need.'))
}

async function open({ context, work }: Workspace): Promise<void> {
  const { viewer } = work
  const { SurfaceScene } = await import('../surface/scene')
  const told = h('output', { 'aria-label': t('Surfaces') })
  const screen = h('div', { class: 'surfaces', tabindex: '0', role: 'application', 'aria-label': t('Surfaces of the organs'), autofocus: true })
  let scene: SurfaceScene | null = null
  const sides = SIDES.map(([side, text]) => button(text, () => scene?.lookFrom(side)))
  const dialog = h(
    'dialog',
    {
      class: 'wide',
      'aria-label': t('Surfaces'),
      onclose: () => {
        scene?.close()
        scene = null
        dialog.remove()
      },
    },
    h('h2', {}, t('Surfaces')),
    screen,
    h('div', { class: 'row' }, sides, told),
    h('p', { class: 'quiet' }, t('Drag or arrows turn, the wheel or + and - zoom. Hidden organs are left out.')),
    h('form', { method: 'dialog' }, h('button', {}, t('Close'))),
  )
  screen.addEventListener('keydown', (event) => {
    const act = KEYS[event.key]
    if (!act || !scene) return
    event.preventDefault()
    act(scene)
  })
  document.body.append(dialog)
  dialog.showModal()
  scene = new SurfaceScene(screen)
  const organs = context.organs.filter(({ label }) => viewer.editor.shows(label))
  for (const [n, { label, color }] of organs.entries()) {
    told.textContent = t('{done} of {all}', { done: n, all: organs.length })
    const field = await inTurns(viewer.editor.field(label)!)
    if (!scene) return // closed
    scene.add(field, color)
    scene.lookFrom('front')
    await new Promise((resolve) => setTimeout(resolve))
  }
  told.textContent = t('{all} organs', { all: organs.length })
}
