"""Whether a model can be a member at all: checked when it is imported, and before it serves."""

from __future__ import annotations

import math

from atlas_core.ensembles import require_members_fit
from atlas_core.errors import LimitExceeded
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import OrganScheme

MAX_WINDOW_VOXELS = 2**25
"""Of one window, 128 MiB of Hounsfield units; nnU-Net's largest plans have a fifth of it."""

MAX_ANSWER_BYTES = 2**31 - 1
"""Of the answer to one window, a byte per organ and voxel; gRPC's messages are no longer."""


def require_compatible(spec: ModelSpec, scheme: OrganScheme) -> tuple[str, ...]:
    """The organs of a model that the atlas lacks, which take no part.

    Raises:
        InvalidInput: it knows no organ of the atlas.
        LimitExceeded: its window is larger than any that can be served.
    """
    voxels = math.prod(spec.patch)
    if voxels > MAX_WINDOW_VOXELS or voxels * len(spec.organs) > MAX_ANSWER_BYTES:
        raise LimitExceeded(
            f"the window of model {spec.name}@{spec.version} is too large",
            expected=f"at most {MAX_WINDOW_VOXELS} voxels, and {MAX_ANSWER_BYTES} bytes of answer",
            got=f"{'×'.join(map(str, spec.patch))} voxels, {len(spec.organs)} organs",
            remedy="export it with a smaller patch, or with fewer organs",
        )
    return require_members_fit({spec.name: spec.organs}, scheme.names).get(spec.name, ())
