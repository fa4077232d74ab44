import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join, relative, sep } from 'node:path'
import { defineConfig, type Plugin } from 'vite'

const ROOT = import.meta.dirname
const OUTPUT = join(ROOT, '..', 'static')

/** Every file of this folder but installed packages, as sorted paths with forward slashes. */
function sources(folder: string = ROOT): string[] {
  return readdirSync(folder, { withFileTypes: true })
    .flatMap((entry) => {
      const path = join(folder, entry.name)
      if (entry.name === 'node_modules') return [] // a folder, or a link to one
      if (entry.isDirectory()) return sources(path)
      return [relative(ROOT, path).split(sep).join('/')]
    })
    .sort()
}

/** sha256 over names and bytes; `tests/e2e/test_review_page.py` computes the same to find a stale build. */
function sourcesHash(): string {
  const hash = createHash('sha256')
  for (const path of sources()) {
    const bytes = readFileSync(join(ROOT, path))
    hash.update(`${path}\0${bytes.length}\0`).update(bytes)
  }
  return hash.digest('hex')
}

const buildRecord: Plugin = {
  name: 'build-record',
  closeBundle() {
    writeFileSync(join(OUTPUT, 'build.json'), JSON.stringify({ sources_sha256: sourcesHash() }) + '\n')
  },
}

export default defineConfig({
  root: ROOT,
  plugins: [buildRecord],
  build: {
    outDir: OUTPUT,
    emptyOutDir: true,
    assetsInlineLimit: 0,
    target: 'es2022',
    modulePreload: { polyfill: false },
  },
})
