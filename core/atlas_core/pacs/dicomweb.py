"""A PACS by DICOMweb: QIDO-RS, WADO-RS and STOW-RS."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset

from atlas_core.errors import ConfigurationError, CorruptFile, InvalidInput, Unavailable
from atlas_core.pacs.remote import FoundSeries, SeriesQuery
from atlas_core.pacs.settings import PacsSettings

AS_STORED: Final = (("application/dicom", "*"),)
"""In whatever transfer syntax the PACS keeps them: it need not transcode."""

STUDY_FIELDS: Final = ["PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyInstanceUID"]
SERIES_FIELDS: Final = ["Modality", "BodyPartExamined"]

# Their messages hold addresses with UIDs and values of attributes.
for name in ("dicomweb_client", "urllib3"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


class DicomWebPacs:
    """See `Pacs`."""

    def __init__(self, settings: PacsSettings) -> None:
        session = requests.Session()
        session.trust_env = False  # no passwords out of a .netrc, no proxy that nobody has named
        if settings.dicomweb_token is not None:
            token = settings.dicomweb_token.get_secret_value()
            session.headers["Authorization"] = f"Bearer {token}"
        elif settings.dicomweb_user is not None:
            password = settings.dicomweb_password
            session.auth = (
                settings.dicomweb_user,
                password.get_secret_value() if password else "",
            )
        if settings.dicomweb_authority is not None:
            session.verify = str(settings.dicomweb_authority)
        self._client = DICOMwebClient(
            str(settings.dicomweb_url).rstrip("/"), session=session, timeout=settings.timeout_s
        )
        # Another try is the caller's: it knows what is there already.
        self._client.set_http_retry_params(retry=False)
        self._pause_s = 1 / settings.images_per_s if settings.images_per_s else 0.0

    def find(self, query: SeriesQuery) -> Iterator[FoundSeries]:
        """See `Pacs.find`."""
        for filters in query.study_filters():
            with _answering():
                studies = self._client.search_for_studies(
                    search_filters=filters, fields=STUDY_FIELDS, get_remaining=True
                )
            for study in map(_dataset, studies):
                if query.wants(study):
                    yield from self._series_of(study, query)

    def _series_of(self, study: Dataset, query: SeriesQuery) -> Iterator[FoundSeries]:
        uid = str(study.StudyInstanceUID)
        with _answering():
            found = self._client.search_for_series(
                uid, search_filters={"Modality": "CT"}, fields=SERIES_FIELDS, get_remaining=True
            )
        for series in map(_dataset, found):
            if not query.wants_series(series):
                continue
            images = self._images(uid, str(series.SeriesInstanceUID))
            if images and query.wants_thickness(self._thickness(query, images[0])):
                yield FoundSeries(
                    study=uid,
                    series=str(series.SeriesInstanceUID),
                    patient=str(study.get("PatientID") or ""),
                    issuer=str(study.get("IssuerOfPatientID") or ""),
                    images=tuple(str(image.SOPInstanceUID) for image in images),
                )

    def _images(self, study: str, series: str) -> list[Dataset]:
        with _answering():
            found = self._client.search_for_instances(study, series, get_remaining=True)
        images = [_dataset(one) for one in found]
        for image in images:
            image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        return images

    def _thickness(self, query: SeriesQuery, image: Dataset) -> float | None:
        if query.max_thickness_mm is None:
            return None
        with _answering():
            header = _dataset(
                self._client.retrieve_instance_metadata(
                    image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID
                )
            )
        thickness = header.get("SliceThickness")
        return None if thickness is None else float(thickness)

    def fetch(
        self, found: FoundSeries, images: Collection[str], take: Callable[[Dataset], None]
    ) -> None:
        """See `Pacs.fetch`."""
        if not images:
            with _answering():
                stream = self._client.iter_series(found.study, found.series, media_types=AS_STORED)
            while (image := _next(stream)) is not None:
                self._take(image, take)
        for uid in images:
            with _answering():
                image = self._client.retrieve_instance(
                    found.study, found.series, uid, media_types=AS_STORED
                )
            self._take(image, take)

    def _take(self, image: Dataset, take: Callable[[Dataset], None]) -> None:
        take(image)
        time.sleep(self._pause_s)

    def store(self, objects: Sequence[Dataset]) -> None:
        """See `Pacs.store`."""
        with _answering():
            answer = self._client.store_instances(list(objects))
        failed = answer.get("FailedSOPSequence") or ()
        if failed:
            raise InvalidInput(
                "the PACS refuses what was sent",
                got=f"reason {failed[0].get('FailureReason')} (STOW-RS)",
            )


def _next(stream: Iterator[Dataset]) -> Dataset | None:
    with _answering():
        return next(stream, None)


def _dataset(answer: dict[str, Any]) -> Dataset:
    return Dataset.from_json(answer, bulk_data_uri_handler=lambda uri: b"")


@contextmanager
def _answering() -> Iterator[None]:
    """Errors of the way there, in our words: theirs hold addresses with UIDs."""
    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise ConfigurationError(
                "the PACS does not let us in",
                got=f"HTTP {status}",
                remedy="check ATLASLOOP_PACS_DICOMWEB_USER, _PASSWORD or _TOKEN",
            ) from None
        if status in (400, 406, 409, 415, 422):
            raise InvalidInput("the PACS refuses the request", got=f"HTTP {status}") from None
        raise Unavailable("the PACS cannot answer", got=f"HTTP {status}") from None
    except requests.RequestException as error:
        raise Unavailable(
            "the PACS does not answer",
            got=type(error).__name__,
            remedy="check ATLASLOOP_PACS_DICOMWEB_URL; run again when it is back",
        ) from None
    except (ValueError, KeyError, AttributeError, EOFError) as error:
        raise CorruptFile(
            "the PACS answers what is no DICOM", got=type(error).__name__, remedy="pull it again"
        ) from None
