"""A PACS as the rest of the room sees it, whichever protocol it speaks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

from pydantic import Field
from pydicom import Dataset

from atlas_core.errors import InvalidInput
from atlas_core.frozen_model import FrozenModel

DATES = r"^(\d{8})?(-(\d{8})?)?$"


class SeriesQuery(FrozenModel):
    """Which series of a PACS are meant; conditions are joined by "and", values of one by "or".

    Attributes:
        studies: StudyInstanceUIDs.
        patients: PatientIDs.
        accessions: AccessionNumbers.
        dates: StudyDate, ``YYYYMMDD`` or ``YYYYMMDD-YYYYMMDD``, either end open.
        body_part: BodyPartExamined.
        max_thickness_mm: of a slice; series that do not say theirs are left out.
    """

    studies: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    accessions: tuple[str, ...] = ()
    dates: str = Field(default="", pattern=DATES)
    body_part: str = ""
    max_thickness_mm: float | None = Field(default=None, gt=0)

    def study_filters(self) -> Iterator[dict[str, str]]:
        """Attributes of each query on the level of studies.

        Raises:
            InvalidInput: it asks for the whole PACS.
        """
        lists = {
            "StudyInstanceUID": self.studies,
            "PatientID": self.patients,
            "AccessionNumber": self.accessions,
        }
        given = {keyword: values for keyword, values in lists.items() if values}
        common = {"StudyDate": self.dates} if self.dates else {}
        if not given and not common:
            raise InvalidInput(
                "this asks for everything that the PACS has",
                expected="studies, patients, accession numbers or dates",
            )
        if not given:
            yield common
            return
        keyword, values = next(iter(given.items()))
        for value in values:
            if any(wild in value for wild in "*?\\"):
                raise InvalidInput(f"{keyword} with a wildcard", expected="each by its full value")
            yield {keyword: value} | common

    def wants(self, study: Dataset) -> bool:
        """Whether a study that a PACS answered is meant: many ignore keys that they do not know."""
        lists = (
            (self.studies, "StudyInstanceUID"),
            (self.patients, "PatientID"),
            (self.accessions, "AccessionNumber"),
        )
        return all(not values or str(study.get(key, "")) in values for values, key in lists)

    def wants_series(self, series: Dataset) -> bool:
        """Whether a series that a PACS answered is meant."""
        part = str(series.get("BodyPartExamined") or "")
        return series.get("Modality") == "CT" and (
            not self.body_part or part.upper() == self.body_part.upper()
        )

    def wants_thickness(self, thickness: float | None) -> bool:
        return self.max_thickness_mm is None or (
            thickness is not None and thickness <= self.max_thickness_mm
        )


class FoundSeries(FrozenModel):
    """A CT series that a PACS has; identifies a patient, so not to be logged.

    Attributes:
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        patient: PatientID.
        issuer: IssuerOfPatientID.
        images: SOPInstanceUIDs; empty if the PACS does not list them.
    """

    study: str
    series: str
    patient: str
    issuer: str = ""
    images: tuple[str, ...] = ()


class Pacs(Protocol):
    """What a PACS can be asked for. All of it raises `Unavailable` while the PACS is away, and
    `ConfigurationError` where it does not let us in."""

    def find(self, query: SeriesQuery) -> Iterator[FoundSeries]:
        """CT series of `query`."""
        ...

    def fetch(
        self, found: FoundSeries, images: Collection[str], take: Callable[[Dataset], None]
    ) -> None:
        """Bring images of a series here.

        Args:
            images: SOPInstanceUIDs that are wanted; empty: all.
            take: called with each, unless the PACS sends them to our receiver.
        """
        ...

    def store(self, objects: Sequence[Dataset]) -> None:
        """Send objects to the PACS.

        Raises:
            InvalidInput: it refuses one.
        """
        ...
