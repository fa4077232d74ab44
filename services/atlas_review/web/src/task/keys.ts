/** The keys of the task page. */

import type { Key } from '../keys'
import { goToNext } from '../next'
import { attempt } from '../notices'
import type { HandIn } from './hand-in'
import type { OrganPanel } from './organ-panel'
import type { Overlays } from './overlays'
import type { RegionList } from './region-list'
import type { Reshape } from './reshape'
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
    ...VIEWS.map(([view, text, name]) => key('Look', name, `view: ${text.toLowerCase()}`, () => toolbar.setView(view))),
    ...WINDOW_NAMES.map((name, i) => key('Look', String(i + 1), `window: ${name}`, () => toolbar.setWindow(name))),
    key('Look', ['ArrowUp', 'PageUp'], 'next slice (also the wheel)', () => viewer.scroll(1)),
    key('Look', ['ArrowDown', 'PageDown'], 'previous slice', () => viewer.scroll(-1)),
    key('Look', ['+', '='], 'zoom in (also Ctrl+wheel, at the pointer)', () => viewer.zoom(1)),
    key('Look', '-', 'zoom out', () => viewer.zoom(-1)),
    key('Look', 'l', 'labels on, off', () => overlays.toggle('labels')),
    key('Look', 'o', 'outlines only', () => overlays.toggle('outline')),
    key('Look', 't', 'attention on, off', () => overlays.toggle('attention')),
    { keys: ['Space'], does: 'bare CT while held', group: 'Look', run: () => viewer.peek(true), release: () => viewer.peek(false) },
    key('Look', 'j', 'next attended region', () => regions.step(1)),
    key('Look', 'k', 'previous attended region', () => regions.step(-1)),
    ...TOOLS.map(([tool, text, name]) => key(READING.has(tool) ? 'Look' : 'Draw', name, text.toLowerCase(), () => toolbar.setTool(tool))),
    key('Draw', 'i', 'interpolate between the two slices drawn last', () => toolbar.interpolate()),
    key('Draw', 'Shift+ArrowUp', 'copy the organ to the next slice, and go there', () => toolbar.copySlice(1)),
    key('Draw', 'Shift+ArrowDown', 'copy the organ to the previous slice, and go there', () => toolbar.copySlice(-1)),
    key('Draw', 'h', 'what others and each model say of the organ, one after the other', () => shapes.next()),
    key('Draw', 'u', 'take that shape in this region', () => shapes.take(false)),
    key('Draw', 'U', 'take that shape as a whole', () => shapes.take(true)),
    key('Draw', '.', 'next organ', () => space.stepOrgan(1)),
    key('Draw', ',', 'previous organ', () => space.stepOrgan(-1)),
    key('Draw', 'B', 'pen and eraser as a ball, on, off', () => toolbar.toggleBall()),
    key('Draw', 'Escape', 'drop the region', () => reshape.drop()),
    key('Draw', ']', 'larger pen (also Shift+wheel), larger region', () => toolbar.stepPenSize(1)),
    key('Draw', '[', 'smaller pen, smaller region', () => toolbar.stepPenSize(-1)),
    key('Draw', ['z', 'Ctrl+z'], 'undo', () => toolbar.undo()),
    key('Draw', 'Z', 'undo the last edit of this organ only', () => toolbar.undoOrgan()),
    key('Draw', ['y', 'Ctrl+y', 'Ctrl+Shift+z'], 'redo', () => toolbar.redo()),
    key('Hand in', 'Enter', 'confirm organ, go to the next (with a region: take it)', () => reshape.accept() || organPanel.judge('confirmed')),
    key('Hand in', 'w', 'organ needs revision', () => organPanel.judge('needs_revision')),
    key('Hand in', 'Shift+Enter', 'confirm case', () => handIn.confirm()),
    key('Hand in', 'Ctrl+Enter', 'submit revision', () => handIn.submit()),
    key('Hand in', 'r', 'ask a second reader', () => handIn.askSecondReader()),
    key('Hand in', 'x', 'skip', () => handIn.skip()),
    key('Hand in', 'p', 'work on a case that is only looked at', () => handIn.begin()),
    key('Hand in', 'n', 'next case', () => attempt(goToNext)),
  ]
}
