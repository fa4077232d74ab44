from .card import release_card
from .files import (
    CHECKSUMS,
    WrittenFile,
    private_mapping,
    require_writable_as,
    write_case,
    write_tables,
)
from .licences import LicenceRisk
from .plan import CtFiles, ReleaseFormat, ReleaseOptions, ReleasePlan, plan_release
from .splits import Split

__all__ = [
    "CHECKSUMS",
    "CtFiles",
    "LicenceRisk",
    "ReleaseFormat",
    "ReleaseOptions",
    "ReleasePlan",
    "Split",
    "WrittenFile",
    "plan_release",
    "private_mapping",
    "release_card",
    "require_writable_as",
    "write_case",
    "write_tables",
]
