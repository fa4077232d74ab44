"""A contact sheet: one picture that shows whether the labels of a case are plausible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from atlas_core.imaging.pictures import Layer, cut_case, picture
from atlas_core.organs import OrganScheme
from PIL import Image

GAP_PX: Final = 4


def write_contact_sheet(
    path: Path, ct: Path, labels: Path, attention: Sequence[Path], scheme: OrganScheme
) -> None:
    """Axial, coronal and sagittal cuts where attention is highest: labels above, attention below.

    Args:
        path: PNG to write.
        labels: label map in force.
        attention: maps of the organs that count; may be none.
    """
    rows = [
        [picture(cut, layer, scheme) for cut in cut_case(ct, labels, attention)]
        for layer in (Layer.LABELS, Layer.ATTENTION)
    ]
    heights = [max(one.height for one in row) for row in rows]
    widths = [max(one.width for one in column) for column in zip(*rows, strict=True)]
    size = (sum(widths) + GAP_PX * 2, sum(heights) + GAP_PX)
    sheet = Image.new("RGB", size, "black")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for one, width in zip(row, widths, strict=True):
            sheet.paste(one, (left + (width - one.width) // 2, top + (height - one.height) // 2))
            left += width + GAP_PX
        top += height + GAP_PX
    sheet.save(path, format="PNG", optimize=True)
