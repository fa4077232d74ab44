"""Organs as coded concepts: SNOMED CT where the scheme says it, else a private code, and back."""

from __future__ import annotations

from typing import Final

from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes

from atlas_core.organs import Organ, OrganScheme

PRIVATE_SCHEME: Final = "99ATLASLOOP"
"""Coding scheme of organs without a SNOMED concept; its code values are organ names."""

CATEGORY: Final = codes.SCT.AnatomicalStructure
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


def organ_of(concept: Dataset, organs: OrganScheme) -> Organ | None:
    """The organ of `organs` that a segmented property type means; None if there is not just one.

    SRT, the name that SNOMED had in DICOM, is passed over: its values are no concept ids.
    """
    value = str(concept.get("CodeValue") or concept.get("LongCodeValue") or "")
    scheme = str(concept.get("CodingSchemeDesignator") or "")
    if scheme == PRIVATE_SCHEME:
        return next((organ for organ in organs if organ.name == value), None)
    if scheme != "SCT":
        return None
    modifiers = concept.get("SegmentedPropertyTypeModifierCodeSequence") or ()
    said = {str(modifier.get("CodeValue") or "") for modifier in modifiers}
    meant = [
        organ
        for organ in organs
        if organ.snomed is not None
        and organ.snomed.code == value
        and said == ({SIDES[organ.snomed.side].value} if organ.snomed.side else set())
    ]
    return meant[0] if len(meant) == 1 else None
