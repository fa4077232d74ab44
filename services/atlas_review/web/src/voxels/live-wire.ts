/** Live wire: the cheapest way along the edges of a picture (Mortensen and Barrett, 1998). */

import FlatQueue from 'flatqueue'

/** Change of grey per millimetre, of the whole range from black to white, at which a voxel costs half. */
const EDGE = 0.04
/** What the best of edges costs, so that a way on it is still a short one. */
const LEAST = 0.02

/** Grey 0 to 1, row by row; sides of a pixel in mm. */
export interface Picture {
  grey: Float32Array
  width: number
  height: number
  spacing: readonly [number, number]
}

/** What a millimetre through each pixel costs: little where its grey changes (Sobel). */
export function edgeCosts({ grey, width, height, spacing }: Picture): Float32Array {
  const costs = new Float32Array(grey.length)
  const at = (x: number, y: number): number => grey[Math.min(Math.max(x, 0), width - 1) + width * Math.min(Math.max(y, 0), height - 1)]!
  for (let y = 0, n = 0; y < height; y++) {
    for (let x = 0; x < width; x++, n++) {
      const across = at(x + 1, y - 1) - at(x - 1, y - 1) + 2 * (at(x + 1, y) - at(x - 1, y)) + at(x + 1, y + 1) - at(x - 1, y + 1)
      const up = at(x - 1, y + 1) - at(x - 1, y - 1) + 2 * (at(x, y + 1) - at(x, y - 1)) + at(x + 1, y + 1) - at(x + 1, y - 1)
      const slope = Math.hypot(across / 8 / spacing[0], up / 8 / spacing[1])
      costs[n] = LEAST + 1 / (1 + (slope / EDGE) ** 2)
    }
  }
  return costs
}

/**
 * For every pixel the one before it on the cheapest way from `start`, -1 at `start` itself. A step to one of eight
 * neighbours costs its length in mm times the mean of both pixels' costs.
 */
export function cheapestWays(picture: Picture, start: number): Int32Array {
  const { width, height, spacing } = picture
  const costs = edgeCosts(picture)
  const before = new Int32Array(costs.length).fill(-1)
  const spent = new Float64Array(costs.length).fill(Infinity)
  const done = new Uint8Array(costs.length)
  const steps = [-1, 0, 1].flatMap((dy) => [-1, 0, 1].map((dx) => ({ dx, dy, half: Math.hypot(dx * spacing[0], dy * spacing[1]) / 2 }))).filter(({ half }) => half > 0)
  const queue = new FlatQueue<number>()
  spent[start] = 0
  queue.push(start, 0)
  for (let here = queue.pop(); here !== undefined; here = queue.pop()) {
    if (done[here]) continue
    done[here] = 1
    const [x, y] = [here % width, Math.floor(here / width)]
    for (const { dx, dy, half } of steps) {
      if (x + dx < 0 || x + dx >= width || y + dy < 0 || y + dy >= height) continue
      const there = here + dx + width * dy
      const cost = spent[here]! + half * (costs[here]! + costs[there]!)
      if (cost >= spent[there]!) continue
      spent[there] = cost
      before[there] = here
      queue.push(there, cost)
    }
  }
  return before
}

/** The pixels from the start of `cheapestWays` to `end`, both included. */
export function wayTo(before: Int32Array, end: number): number[] {
  const way = [end]
  for (let at = before[end]!; at >= 0; at = before[at]!) way.push(at)
  return way.reverse()
}
