"""What a canvas shows, as one number: pictures that differ have different ones."""

from __future__ import annotations

from typing import Final

DIGEST_OF: Final = """
  const small = new OffscreenCanvas(96, 60).getContext('2d', { willReadFrequently: true })
  const digestOf = (canvas) => {
    if (!canvas?.width) return 0
    small.clearRect(0, 0, 96, 60)
    small.drawImage(canvas, 0, 0, 96, 60)
    let sum = 0
    const pixels = new Uint32Array(small.getImageData(0, 0, 96, 60).data.buffer)
    for (let i = 0; i < pixels.length; i++) {
      const grey = pixels[i] & 0xffffff
      if (grey) sum = (sum * 31 + grey + i) % 2147483647
    }
    return sum
  }
"""
"""JavaScript at the head of a function in the page; 0 for a canvas that is missing, empty or black.
Reduced, since every frame is looked at."""
