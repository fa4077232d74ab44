"""Names by which datasets and models call our organs. Free of torch."""

from __future__ import annotations

import re

from atlas_core.organs import OrganScheme

_SYNONYMS = {
    "gall_bladder": ("gallbladder", "gb"),
    "kidney_left": ("left_kidney", "kidney_l", "l_kidney"),
    "kidney_right": ("right_kidney", "kidney_r", "r_kidney"),
    "postcava": (
        "inferior_vena_cava",
        "ivc",
        "post_cava",
        "postcava_vein",
        "vena_cava_inferior",
    ),
    "aorta": ("abdominal_aorta", "arota"),  # AMOS's dataset.json spells it so
}


def organ_called(name: str, scheme: OrganScheme) -> str | None:
    """The organ of `scheme` that `name` means in a dataset's label list; None: none of them.

    >>> from atlas_core.organs import ABDOMEN_ATLAS
    >>> organ_called("Right Kidney", ABDOMEN_ATLAS), organ_called("duodenum", ABDOMEN_ATLAS)
    ('kidney_right', None)
    """
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    for organ in scheme.names:
        if plain == organ or plain in _SYNONYMS.get(organ, ()):
            return organ
    return None
