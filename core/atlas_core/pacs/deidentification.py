"""De-identification on arrival, by the Basic Application Confidentiality Profile of DICOM PS3.15.

The profile's table and its actions are dicom-anonymizer's (Kitware). It works on the outermost data
set and knows no options, so this module applies it to every item of every sequence, and adds the
options by its own means, rules per tag:

- *Clean Descriptors*: no text that a person could have typed stays, whatever its attribute.
- *Retain Longitudinal Temporal Information with Modified Dates*: dates move by one number of days
  per patient, times of day stay.
- *Retain Device Identity*, without what a site has named: maker, model and software stay.

What stays is looked through once more for words that the removed attributes held.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, initialize_actions
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.tag import BaseTag

from atlas_core.errors import UnsupportedVolume
from atlas_core.imaging.dicom_reader import CTS
from atlas_core.pacs.pseudonyms import Pseudonyms, shifted

TABLE: Final = "dicomfields_2026c"
"""Edition of PS3.15's table E.1-1 in dicom-anonymizer."""

DICOM_ROOT: Final = "1.2.840.10008."
"""UIDs of the standard itself: classes, transfer syntaxes. All others name things of the site."""

TEXTS: Final = frozenset(
    ["AE", "LO", "LT", "PN", "SH", "ST", "UC", "UN", "UR", "UT", "OB", "OD", "OF", "OL", "OV", "OW"]
)
"""Value representations that can hold whatever somebody typed, or nobody can read."""

DEVICE: Final = frozenset({"Manufacturer", "ManufacturerModelName", "SoftwareVersions"})
TECHNICAL: Final = frozenset({"ConvolutionKernel", "PixelData", "PixelPaddingValue", "RescaleType"})
"""Attributes of these representations that stay."""

DATES: Final = frozenset({"DA", "DT", "TM"})
PATIENT: Final = 0x0010
"""Group of the patient's own attributes: a day of birth is no date of the examination."""

SHORTEST_WORD: Final = 3
"""Characters of a word that is looked for in what stays; shorter ones are everywhere."""


@dataclass(frozen=True)
class Deidentified:
    """One image without its patient.

    Attributes:
        dataset: the image; its UIDs and patient are pseudonyms.
        names: pseudonym → original.
        removed: attributes that are gone or were replaced, by tag; never a value.
    """

    dataset: Dataset
    names: dict[str, str]
    removed: frozenset[BaseTag]


def require_takeable(dataset: Dataset) -> None:
    """Refuse what de-identification cannot clean: pictures with writing in them, and what is no CT.

    Raises:
        UnsupportedVolume: with the reason.
    """
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        if not str(dataset.get(keyword) or ""):
            raise UnsupportedVolume(f"image without {keyword}")
    if str(dataset.SOPClassUID) not in CTS - {""}:
        raise UnsupportedVolume("no CT image, by its SOP class (a secondary capture, a report)")
    if "ConversionType" in dataset:
        raise UnsupportedVolume("a secondary capture (ConversionType): writing may be burnt in")
    if str(dataset.get("BurnedInAnnotation") or "NO").strip().upper() != "NO":
        raise UnsupportedVolume("writing is burnt into its pixels (BurnedInAnnotation)")


def deidentified(original: Dataset, pseudonyms: Pseudonyms) -> Deidentified:
    """A de-identified copy of `original`; see the module.

    Raises:
        UnsupportedVolume: as `require_takeable`.
    """
    require_takeable(original)
    patient = pseudonyms.patient(
        str(original.get("PatientID") or ""), str(original.get("IssuerOfPatientID") or "")
    )
    made = copy.deepcopy(original)
    words, before = _words_of_people(made), _texts(made)
    names = {pseudonyms.uid(uid): uid for uid in _uids(made) if not uid.startswith(DICOM_ROOT)}
    names[patient] = str(original.get("PatientID") or "")
    made.remove_private_tags()
    for one in _data_sets(made):
        anonymize_dataset(one, base_rules_gen=lambda one=one: _rules_of(one))
        _clean(one, pseudonyms, pseudonyms.shift_days(patient), words)
    made.PatientID = made.PatientName = patient
    _declare(made)
    _describe_file(made, original)
    after = _texts(made)
    removed = frozenset(tag for tag, values in before.items() if after.get(tag) != values)
    return Deidentified(made, names, removed)


@cache
def _rules() -> dict[tuple[int, ...], Callable[..., None]]:
    """The profile's actions; UIDs, dates and devices are dealt with by `_clean`."""
    rules = {tag: _safe(action) for tag, action in initialize_actions(TABLE).items()}
    for tag in rules:
        if len(tag) != 2:  # a repeating group
            continue
        vr = _representation(tag)
        if vr == "UI" or (vr in DATES and tag[0] != PATIENT) or keyword_for_tag(tag) in DEVICE:
            rules[tag] = _keep
    return rules


def _rules_of(dataset: Dataset) -> dict[tuple[int, ...], Callable[..., None]]:
    """Those of attributes that are there: all of them, tried on every item, take 50 times as
    long."""
    rules = _rules()
    there = {(tag.group, tag.element) for tag in dataset.keys()}  # noqa: SIM118
    repeating = [tag for tag in rules if len(tag) != 2]
    return {tag: rules[tag] for tag in (*(there & rules.keys()), *repeating)}


def _safe(action: Callable[..., None]) -> Callable[..., None]:
    """`action`, or removal where dicom-anonymizer has no dummy for the representation."""

    def apply(dataset: Dataset, tag: Any) -> None:
        try:
            action(dataset, tag)
        except Exception:  # also of malformed values, on which pydicom raises what it likes
            if tag in dataset:
                del dataset[tag]

    return apply


def _keep(dataset: Dataset, tag: Any) -> None:
    """Left to `_clean`, which sees also what is in no table."""


def _representation(tag: tuple[int, ...]) -> str:
    try:
        return str(dictionary_VR(tag))
    except KeyError:
        return ""


def _data_sets(dataset: Dataset) -> Iterator[Dataset]:
    """`dataset` and the items of its sequences, the outer ones first: what they lost is not
    visited."""
    yield dataset
    for element in _elements(dataset):
        if element.VR == "SQ":
            for item in element.value or ():
                yield from _data_sets(item)


def _elements(dataset: Dataset) -> Iterator[DataElement]:
    """Its elements; those that cannot be read are removed."""
    for tag in list(dataset.keys()):
        try:
            yield dataset[tag]
        except Exception:  # pydicom raises what it likes on malformed values
            del dataset[tag]


def _clean(dataset: Dataset, pseudonyms: Pseudonyms, days: int, words: frozenset[str]) -> None:
    """Treat the attributes of one data set by their representation, whatever table they are in."""
    for element in _elements(dataset):
        keyword, vr = element.keyword, element.VR
        text = vr in TEXTS and keyword not in TECHNICAL | DEVICE
        if vr == "SQ" or keyword == "PixelData":
            continue
        if vr == "UI":
            _replace(
                element, lambda uid: uid if uid.startswith(DICOM_ROOT) else pseudonyms.uid(uid)
            )
        elif vr in ("DA", "DT") and element.tag.group != PATIENT:
            _replace(element, lambda text: shifted(text, days))
        elif text or not keyword or _mentions(element, words):
            del dataset[element.tag]


def _replace(element: DataElement, function: Callable[[str], str]) -> None:
    values = element.value if element.VM > 1 else [element.value]
    replaced = [function(str(value)) if value else "" for value in values]
    element.value = replaced if len(replaced) > 1 else replaced[0]


def _mentions(element: DataElement, words: frozenset[str]) -> bool:
    value = str(element.value).lower()
    return any(word in value for word in words)


def _words_of_people(dataset: Dataset) -> frozenset[str]:
    """Words that name the patient or staff, in lower case, wherever an attribute for them holds
    them."""
    found: set[str] = set()
    for element in (one for data_set in _data_sets(dataset) for one in _elements(data_set)):
        if element.VR == "PN" or element.keyword in ("PatientID", "OtherPatientIDs"):
            found.update(re.split(r"[\W_]+", str(element.value).lower()))
    return frozenset(word for word in found if len(word) >= SHORTEST_WORD and not word.isdigit())


def _uids(dataset: Dataset) -> Iterator[str]:
    for one in _data_sets(dataset):
        for element in _elements(one):
            if element.VR == "UI":
                values = element.value if element.VM > 1 else [element.value]
                yield from (str(value) for value in values if value)


def _texts(dataset: Dataset) -> dict[BaseTag, list[str]]:
    """What can be compared before and after: everything but pixels."""
    found: dict[BaseTag, list[str]] = {}
    for one in _data_sets(dataset):
        for element in _elements(one):
            if element.VR != "SQ" and element.keyword != "PixelData":
                found.setdefault(element.tag, []).append(str(element.value))
    return found


def _declare(dataset: Dataset) -> None:
    """What was done, in the attributes that the profile asks for."""
    dataset.PatientIdentityRemoved = "YES"
    dataset.LongitudinalTemporalInformationModified = "MODIFIED"
    dataset.DeidentificationMethodCodeSequence = [
        _code(code)
        for code in (
            codes.DCM.BasicApplicationConfidentialityProfile,
            codes.DCM.CleanDescriptorsOption,
            codes.DCM.RetainLongitudinalTemporalInformationModifiedDatesOption,
            codes.DCM.RetainDeviceIdentityOption,
        )
    ]


def _code(code: Any) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = (
        code.value,
        code.scheme_designator,
        code.meaning,
    )
    return item


def _describe_file(dataset: Dataset, original: Dataset) -> None:
    """A file's head that names nothing of where it comes from."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = original.file_meta.TransferSyntaxUID
    dataset.file_meta = meta
    if hasattr(dataset, "preamble"):
        dataset.preamble = None
