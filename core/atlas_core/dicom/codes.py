"""Organs as coded concepts: SNOMED CT where the scheme says it, else a private code, and back."""

from __future__ import annotations

from typing import Final

from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from atlas_core.organs import Organ, OrganScheme

PRIVATE_SCHEME: Final = "99ATLASLOOP"
"""Coding scheme of organs without a SNOMED concept; its code values are organ names."""

CATEGORY: Final = codes.SCT.AnatomicalStructure
GENERAL: Final = (
    codes.SCT.AnatomicalStructure, codes.SCT.BodyStructure, codes.SCT.Organ, codes.SCT.Tissue,
)  # fmt: skip
"""Types that say no more than that there is something."""

SIDES: Final = {"left": codes.SCT.Left, "right": codes.SCT.Right}


def concept_of(organ: Organ) -> CodedConcept:
    """What `organ` is, with its side as a modifier where the concept does not say it."""
    snomed = organ.snomed
    if snomed is None:
        return CodedConcept(organ.name, PRIVATE_SCHEME, organ.title)
    concept = CodedConcept(snomed.code, "SCT", snomed.meaning)
    if snomed.side is not None:
        concept.SegmentedPropertyTypeModifierCodeSequence = [
            CodedConcept.from_code(SIDES[snomed.side])
        ]
    return concept


def organs_of(concept: Dataset, organs: OrganScheme) -> tuple[Organ, ...] | None:
    """The organs of `organs` that a segmented property type means, by its code and side.

    SRT, as SNOMED was called in DICOM, is understood.

    Returns:
        One organ; left and right where the code is of both and says no side; none where it is
        something else; None where it says nothing ("tissue", a code of somebody's own).
    """
    code = _code(concept)
    if code.scheme_designator == PRIVATE_SCHEME:
        return tuple(organ for organ in organs if organ.name == code.value)
    if code.scheme_designator not in ("SCT", "SRT", "SNM3") or code in GENERAL:
        return None
    modifiers = concept.get("SegmentedPropertyTypeModifierCodeSequence") or ()
    sides = {side for side, meant in SIDES.items() if any(_code(one) == meant for one in modifiers)}
    return tuple(
        organ
        for organ in organs
        if organ.snomed is not None
        and code == Code(organ.snomed.code, "SCT", "")
        and (not sides or organ.snomed.side is None or sides == {organ.snomed.side})
    )


def _code(concept: Dataset) -> Code:
    value = concept.get("CodeValue") or concept.get("LongCodeValue") or ""
    return Code(str(value), str(concept.get("CodingSchemeDesignator") or ""), "")
