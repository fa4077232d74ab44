/** The keys of the task page. */

import { inSentence, t } from '../i18n'
import type { Key } from '../keys'
import { goToNext } from '../next'
import { attempt } from '../notices'
import type { HandIn } from './hand-in'
import type { OrganPanel } from './organ-panel'
import type { Overlays } from './overlays'
import type { RegionList } from './region-list'
import type { Reshape } from './reshape'
import { showSurfaces } from './surface'
import type { Shapes } from './shapes'
import type { Toolbar } from './toolbar'
import { READING, TOOLS, VIEWS, WINDOW_NAMES } from './tools'
import type { Workspace } from './workspace'

export interface Parts {
  space: Workspace
  toolbar: Toolbar
  organPanel: OrganPanel
  overlays: Overlays
  regions: RegionList
  shapes: Shapes
  handIn: HandIn
  reshape: Reshape
}

export function taskKeys({ space, toolbar, organPanel, overlays, regions, shapes, handIn, reshape }: Parts): Key[] {
  const key = (group: string, keys: string | string[], does: string, run: () => void): Key => ({ keys: [keys].flat(), does, group, run })
  const viewer = space.work.viewer
  return [
    ...VIEWS.map(([view, text, name]) => key(t('Look'), name, t('view: {view}', { view: inSentence(text) }), () => toolbar.setView(view))),
    ...WINDOW_NAMES.map((name, i) => key(t('Look'), String(i + 1), t('window: {window}', { window: t(name) }), () => toolbar.setWindow(name))),
    key(t('Look'), 'M', t('MIP: highest values of a slab, thicker, whole volume, off'), () => toolbar.stepSlab()),
    key(t('Look'), 'D', t('surfaces of the organs'), () => showSurfaces(space)),
    key(t('Look'), ['ArrowUp', 'PageUp'], t('next slice (also the wheel)'), () => viewer.scroll(1)),
    key(t('Look'), ['ArrowDown', 'PageDown'], t('previous slice'), () => viewer.scroll(-1)),
    key(t('Look'), ['+', '='], t('zoom in (also Ctrl+wheel, at the pointer)'), () => viewer.zoom(1)),
    key(t('Look'), '-', t('zoom out'), () => viewer.zoom(-1)),
    key(t('Look'), 'l', t('labels on, off'), () => overlays.toggle('labels')),
    key(t('Look'), 'o', t('outlines only'), () => overlays.toggle('outline')),
    key(t('Look'), 't', t('attention on, off'), () => overlays.toggle('attention')),
    { keys: ['Space'], does: t('bare CT while held'), group: t('Look'), run: () => viewer.peek(true), release: () => viewer.peek(false) },
    key(t('Look'), 'j', t('next attended region'), () => regions.step(1)),
    key(t('Look'), 'k', t('previous attended region'), () => regions.step(-1)),
    ...TOOLS.map(([tool, text, name]) => key(READING.has(tool) ? t('Look') : t('Draw'), name, inSentence(text), () => toolbar.setTool(tool))),
    key(t('Draw'), 'i', t('interpolate between the two slices drawn last'), () => toolbar.interpolate()),
    key(t('Draw'), 'Shift+ArrowUp', t('copy the organ to the next slice, and go there'), () => toolbar.copySlice(1)),
    key(t('Draw'), 'Shift+ArrowDown', t('copy the organ to the previous slice, and go there'), () => toolbar.copySlice(-1)),
    key(t('Draw'), 'h', t('what others and each model say of the organ, one after the other'), () => shapes.next()),
    key(t('Draw'), 'u', t('take that shape in this region'), () => shapes.take(false)),
    key(t('Draw'), 'U', t('take that shape as a whole'), () => shapes.take(true)),
    key(t('Draw'), '.', t('next organ'), () => space.stepOrgan(1)),
    key(t('Draw'), ',', t('previous organ'), () => space.stepOrgan(-1)),
    key(t('Draw'), 'B', t('pen and eraser as a ball, on, off'), () => toolbar.toggleBall()),
    key(t('Draw'), 'Backspace', t('take the last click of the live wire back'), () => viewer.shortenWire()),
    key(t('Draw'), 'Escape', t('drop the region or the live wire'), () => {
      viewer.dropWire()
      reshape.drop()
    }),
    key(t('Draw'), ']', t('larger pen (also Shift+wheel), larger region'), () => toolbar.stepPenSize(1)),
    key(t('Draw'), '[', t('smaller pen, smaller region'), () => toolbar.stepPenSize(-1)),
    key(t('Draw'), ['z', 'Ctrl+z'], t('undo'), () => toolbar.undo()),
    key(t('Draw'), 'Z', t('undo the last edit of this organ only'), () => toolbar.undoOrgan()),
    key(t('Draw'), ['y', 'Ctrl+y', 'Ctrl+Shift+z'], t('redo'), () => toolbar.redo()),
    key(t('Hand in'), 'Enter', t('confirm organ, go to the next (with a region: take it; with a live wire: fill it)'), () => viewer.closeWire() || reshape.accept() || organPanel.judge('confirmed')),
    key(t('Hand in'), 'w', t('organ needs revision'), () => organPanel.judge('needs_revision')),
    key(t('Hand in'), 'Shift+Enter', t('confirm case'), () => handIn.confirm()),
    key(t('Hand in'), 'Ctrl+Enter', t('submit revision'), () => handIn.submit()),
    key(t('Hand in'), 'r', t('ask a second reader'), () => handIn.askSecondReader()),
    key(t('Hand in'), 'x', t('skip'), () => handIn.skip()),
    key(t('Hand in'), 'p', t('work on a case that is only looked at'), () => handIn.begin()),
    key(t('Hand in'), 'n', t('next case'), () => attempt(goToNext)),
  ]
}
