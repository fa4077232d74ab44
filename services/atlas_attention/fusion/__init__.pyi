from .agreement import Counts, disagreement, mean_probability_sum, no_counts
from .compute import Compute, CpuCompute, DeviceName, WindowBlender, open_compute
from .fused import MAX_MODELS, MAX_ORGANS, Fused, SoftPredictions, entropy_terms
from .fusion import fuse, open_fuser
from .kernels import (
    ATTENDED_FROM,
    ATTENTION_LEVELS,
    ATTENTION_SCALE,
    FRACTION_BITS,
    HALF_BYTE,
    UNIT,
)
from .threads import Threads, available_threads, parallel_for
from .voices import Panel, PanelFuser, panels
from .windows import (
    AIR_HU,
    DEFAULT_OVERLAP,
    MAX_OVERLAP,
    SLACK_SHARE,
    Box,
    Range,
    Window,
    WindowPlan,
    Zyx,
)

__all__ = [
    "AIR_HU",
    "ATTENDED_FROM",
    "ATTENTION_LEVELS",
    "ATTENTION_SCALE",
    "DEFAULT_OVERLAP",
    "FRACTION_BITS",
    "HALF_BYTE",
    "MAX_MODELS",
    "MAX_ORGANS",
    "MAX_OVERLAP",
    "SLACK_SHARE",
    "UNIT",
    "Box",
    "Compute",
    "Counts",
    "CpuCompute",
    "DeviceName",
    "Fused",
    "Panel",
    "PanelFuser",
    "Range",
    "SoftPredictions",
    "Threads",
    "Window",
    "WindowBlender",
    "WindowPlan",
    "Zyx",
    "available_threads",
    "disagreement",
    "entropy_terms",
    "fuse",
    "mean_probability_sum",
    "no_counts",
    "open_compute",
    "open_fuser",
    "panels",
    "parallel_for",
]
