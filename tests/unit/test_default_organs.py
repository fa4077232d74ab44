"""Which organs there are is configuration: only settings and phantoms have organs of their own."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

ALLOWED = {
    "core/atlas_core/organs.py",  # names the nine
    "core/atlas_core/catalog/migrations/versions/r0009_organ_schemes.py",  # what atlases had before
    "core/atlas_core/phantoms/organs.py",  # what they are drawn with
    "core/atlas_core/phantoms/people.py",  # whose label maps they are drawn from
    "services/atlas_attention/settings.py",
    "services/atlas_review/settings.py",
    "flows/atlas_flows/settings.py",  # names the shipped ones in its help
}

DEFAULT = re.compile(r"ABDOMEN_ATLAS|abdomen_atlas_1_0|totalsegmentator_v2")
DOCTEST = re.compile(r"^\s*(>>>|\.\.\.) .*$|^\s*Example: .*$", re.MULTILINE)


def test_no_module_but_the_settings_names_a_default_scheme() -> None:
    roots = ("core", "services", "models", "flows", "deploy/embedded")
    found = {
        str(path.relative_to(REPOSITORY))
        for root in roots
        for path in (REPOSITORY / root).rglob("*.py")
        if DEFAULT.search(DOCTEST.sub("", path.read_text(encoding="utf-8")))
    }
    assert found == ALLOWED


def test_no_module_takes_phantoms_for_patients() -> None:
    """The organs of phantoms stand where phantoms are read, and nowhere else."""
    found = {
        str(path.relative_to(REPOSITORY))
        for root in ("core", "services", "models", "flows")
        for path in (REPOSITORY / root).rglob("*.py")
        if "PHANTOM_ORGANS" in path.read_text(encoding="utf-8") and "/phantoms/" not in str(path)
    }
    assert found == {
        "flows/atlas_flows/demos/phantom_nnunet.py",
        "flows/atlas_flows/mixed_demo.py",
        "models/atlas_models/evaluation/phantom_evaluation.py",
        "models/atlas_models/training/patches.py",
    }
