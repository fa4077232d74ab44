"""A PACS by C-FIND, C-MOVE and C-STORE, and the receiver that it and others send to."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from pydicom import Dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    LegacyConvertedEnhancedCTImageStorage,
    RLELossless,
)
from pynetdicom import AE, Association, build_context, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from atlas_core.addresses import host_and_port
from atlas_core.errors import (
    AtlasError,
    ConfigurationError,
    Conflict,
    InvalidInput,
    LimitExceeded,
    Unavailable,
)
from atlas_core.pacs.remote import FoundSeries, SeriesQuery
from atlas_core.pacs.settings import PacsSettings
from atlas_core.tls import TlsFiles

FIND: Final = StudyRootQueryRetrieveInformationModelFind
MOVE: Final = StudyRootQueryRetrieveInformationModelMove
CT_CLASSES: Final = (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)
"""What is received at all; a sender learns of the rest when it connects."""

SYNTAXES: Final = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    RLELossless,
)
"""Transfer syntaxes that are received. Neither deflated (no bound on what comes out) nor lossy."""

SUCCESS: Final = 0x0000
DUPLICATE: Final = 0x0111
OUT_OF_RESOURCES: Final = 0xA700
NOT_TAKEN: Final = 0xC000
"""Statuses of C-STORE by PS3.4 and PS3.7."""

PENDING: Final = (0xFF00, 0xFF01)

# Associations and identifiers of patients are in what it logs.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
log = logging.getLogger(__name__)

assert DeflatedExplicitVRLittleEndian not in SYNTAXES and ExplicitVRBigEndian not in SYNTAXES


class DimsePacs:
    """See `Pacs`. What is fetched comes to our receiver, which must be up (`Receiver`)."""

    def __init__(self, settings: PacsSettings) -> None:
        self._settings = settings

    def find(self, query: SeriesQuery) -> Iterator[FoundSeries]:
        """See `Pacs.find`."""
        found = []
        with self._association(FIND) as association:
            for filters in query.study_filters():
                for study in _find(association, "STUDY", _STUDY | filters):
                    if query.wants(study):
                        found += list(_series_of(association, study, query))
        yield from found

    def fetch(
        self, found: FoundSeries, images: Collection[str], take: Callable[[Dataset], None]
    ) -> None:
        """See `Pacs.fetch`; `take` is the receiver's."""
        wanted = Dataset()
        wanted.QueryRetrieveLevel = "IMAGE" if images else "SERIES"
        wanted.StudyInstanceUID, wanted.SeriesInstanceUID = found.study, found.series
        if images:
            wanted.SOPInstanceUID = list(images)
        with self._association(MOVE) as association:
            for status, _ in association.send_c_move(wanted, self._settings.title, MOVE):
                code = _code(status)
                if code == 0xA801:
                    raise ConfigurationError(
                        "the PACS does not know our AE title",
                        got=self._settings.title,
                        remedy="enter title, address and port of the receiver there",
                    )
                if code not in PENDING and code != SUCCESS and not 0xB000 <= code < 0xC000:
                    raise Unavailable("the PACS could not send", got=f"C-MOVE status {code:04X}")

    def store(self, objects: Sequence[Dataset]) -> None:
        """See `Pacs.store`."""
        kinds = {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in objects}
        contexts = [build_context(*kind) for kind in sorted(kinds)]  # at most 128 are allowed
        with self._association(*contexts) as association:
            for one in objects:
                try:
                    code = _code(association.send_c_store(one))
                except ValueError:  # no context was accepted for it
                    raise InvalidInput(
                        "the PACS does not take this kind of object", got=one.SOPClassUID.name
                    ) from None
                if code != SUCCESS and not 0xB000 <= code < 0xC000:
                    raise InvalidInput(
                        "the PACS refuses what was sent", got=f"C-STORE status {code:04X}"
                    )

    @contextmanager
    def _association(self, *contexts: Any) -> Iterator[Association]:
        settings = self._settings
        entity = AE(settings.title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = settings.timeout_s
        entity.connection_timeout = settings.timeout_s
        for context in contexts:
            if isinstance(context, str):
                entity.add_requested_context(context)
        own = [context for context in contexts if not isinstance(context, str)] or None
        host, port = host_and_port(str(settings.peer))
        tls = (_client_context(settings.tls), host) if settings.tls else None
        association = entity.associate(
            host, port, contexts=own, ae_title=settings.peer_title, tls_args=tls
        )
        if association.is_rejected:
            raise ConfigurationError(
                "the PACS does not let us in",
                got=f"our title {settings.title}, its title {settings.peer_title}",
                remedy="enter our AE title there; check ATLASLOOP_PACS_PEER_TITLE",
            )
        if not association.is_established:
            raise Unavailable(
                "the PACS does not answer",
                remedy="check ATLASLOOP_PACS_PEER; run again when it is back",
            )
        try:
            yield association
        finally:
            association.release()


_STUDY: Final = {
    "StudyInstanceUID": "",
    "PatientID": "",
    "IssuerOfPatientID": "",
    "AccessionNumber": "",
    "StudyDate": "",
}


def _series_of(
    association: Association, study: Dataset, query: SeriesQuery
) -> Iterator[FoundSeries]:
    uid = str(study.StudyInstanceUID)
    keys = {
        "StudyInstanceUID": uid,
        "SeriesInstanceUID": "",
        "Modality": "CT",
        "BodyPartExamined": "",
    }
    for series in _find(association, "SERIES", keys):
        if not query.wants_series(series):
            continue
        one = str(series.SeriesInstanceUID)
        keys_of_image = {
            "StudyInstanceUID": uid,
            "SeriesInstanceUID": one,
            "SOPInstanceUID": "",
            "SliceThickness": "",
        }
        images = list(_find(association, "IMAGE", keys_of_image))
        thickness = images[0].get("SliceThickness") if images else None
        if query.wants_thickness(None if thickness is None else float(thickness)):
            yield FoundSeries(
                study=uid,
                series=one,
                patient=str(study.get("PatientID") or ""),
                issuer=str(study.get("IssuerOfPatientID") or ""),
                images=tuple(str(image.SOPInstanceUID) for image in images),
            )


def _find(association: Association, level: str, keys: dict[str, str]) -> list[Dataset]:
    wanted = Dataset()
    wanted.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(wanted, keyword, value)
    found = []
    for status, answer in association.send_c_find(wanted, FIND):
        code = _code(status)
        if code in PENDING and answer is not None:
            found.append(answer)
        elif code not in (SUCCESS, *PENDING):
            raise Unavailable("the PACS could not search", got=f"C-FIND status {code:04X}")
    return found


def _code(status: Dataset) -> int:
    """
    Raises:
        Unavailable: the association broke: there is no status.
    """
    if "Status" not in status:
        raise Unavailable("the connection to the PACS broke", remedy="run again: what came stays")
    return int(status.Status)


class Receiver:
    """Our AE, which takes CT images (C-STORE) and answers C-ECHO; a context manager.

    Args:
        settings: where it listens, and who may send.
        take: called with each image, in a thread of its association; what it raises becomes the
            status that the sender gets.

    Raises:
        ConfigurationError: it cannot listen there.
    """

    def __init__(self, settings: PacsSettings, take: Callable[[Dataset], object]) -> None:
        self._take = take
        self._limit = settings.max_image_mb * 1_000_000
        self._sizes: dict[int, int] = {}
        entity = AE(settings.title)
        entity.require_called_aet = True
        entity.require_calling_aet = list(settings.allowed_callers)
        entity.maximum_associations = settings.max_associations
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = settings.timeout_s
        entity.add_supported_context(Verification)
        for storage in CT_CLASSES:
            entity.add_supported_context(storage, list(SYNTAXES))
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_DATA_RECV, self._on_data),
            (evt.EVT_CONN_CLOSE, self._on_close),
        ]
        tls = _server_context(settings.tls) if settings.tls else None
        try:
            self._server = entity.start_server(
                host_and_port(settings.listen), block=False, ssl_context=tls, evt_handlers=handlers
            )
        except OSError as error:
            raise ConfigurationError(
                f"images cannot be received on {settings.listen}",
                got=error.strerror,
                remedy="stop what listens there, or set ATLASLOOP_PACS_LISTEN",
            ) from None

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def _on_store(self, event: Any) -> int:
        self._sizes[id(event.assoc)] = 0
        try:
            image = event.dataset
            image.file_meta = event.file_meta
            self._take(image)
        except Conflict as error:
            return _told(error, DUPLICATE)
        except (Unavailable, LimitExceeded) as error:
            return _told(error, OUT_OF_RESOURCES)
        except AtlasError as error:
            return _told(error, NOT_TAKEN)
        except Exception as error:  # of pydicom, on what others send; its text quotes values
            log.error("an image was not taken: %s", type(error).__name__)
            return NOT_TAKEN
        return SUCCESS

    def _on_data(self, event: Any) -> None:
        """An image is in memory until it is whole: a sender that never ends one is cut off."""
        size = self._sizes.get(id(event.assoc), 0) + len(event.data)
        self._sizes[id(event.assoc)] = size
        if size > self._limit:
            log.error("an association sent an image beyond the limit and was ended")
            event.assoc.abort()

    def _on_close(self, event: Any) -> None:
        self._sizes.pop(id(event.assoc), None)


def _told(error: AtlasError, status: int) -> int:
    log.warning("an image was not taken: %s", error)
    return status


def _client_context(tls: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(tls.authority))
    context.load_cert_chain(tls.certificate, tls.key)
    return context


def _server_context(tls: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tls.authority))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(tls.certificate, tls.key)
    return context
