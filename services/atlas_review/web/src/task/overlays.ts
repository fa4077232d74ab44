/** What is drawn over the CT: labels, their outlines, attention. */

import { inSentence, t } from '../i18n'
import { h, replace, select, title } from '../dom'
import { attempt } from '../notices'
import { OPACITY } from '../viewer'
import type { Workspace } from './workspace'

export type Overlay = 'labels' | 'outline' | 'attention'

export class Overlays {
  readonly element = h('section', { 'aria-label': t('Overlays') })
  private readonly ticks: Record<Overlay, HTMLInputElement>

  constructor(private readonly space: Workspace) {
    this.ticks = {
      labels: this.tick('labels', 'l', true, t('Show labels')),
      outline: this.tick('outline', 'o', false),
      attention: this.tick('attention', 't', true, t('Show attention')),
    }
  }

  private tick(overlay: Overlay, key: string, checked: boolean, label?: string): HTMLInputElement {
    return h('input', { type: 'checkbox', checked, 'aria-label': label, 'aria-keyshortcuts': key, onchange: () => this.apply(overlay) })
  }

  draw(): void {
    const attention = this.space.work.detail.case.attention
    const organs = attention.map((one) => [one.organ, `${title(one.organ)} (${one.attention_ml.toFixed(1)} ml)`] as const)
    replace(
      this.element,
      h('h2', {}, t('Overlays')),
      this.row('labels', t('Labels'), 'l'),
      h('label', { class: 'row' }, this.ticks.outline, t('Outlines only'), h('kbd', { 'aria-hidden': 'true' }, 'o')),
      this.row('attention', t('Attention'), 't'),
      select(t('Attention of'), [['', t('all organs')], ...organs], '', (organ) => attempt(() => this.space.work.showAttention(organ))),
    )
  }

  private row(overlay: 'labels' | 'attention', text: string, key: string): HTMLElement {
    const opacity = h('input', {
      type: 'range',
      min: '0',
      max: '1',
      step: '0.05',
      value: OPACITY[overlay],
      'aria-label': t('Opacity of {overlay}', { overlay: inSentence(text) }),
      oninput: () => this.space.work.viewer.setOpacity({ [overlay]: Number(opacity.value) }),
    })
    return h('div', { class: 'row overlay' }, h('label', {}, this.ticks[overlay], text, h('kbd', { 'aria-hidden': 'true' }, key)), opacity)
  }

  toggle(overlay: Overlay): void {
    const tick = this.ticks[overlay]
    tick.checked = !tick.checked
    this.apply(overlay)
  }

  private apply(overlay: Overlay): void {
    this.space.work.viewer.setOverlays({ [overlay]: this.ticks[overlay].checked })
  }
}
