"""Signed image ids for MONAI Label clients: a case, a right to download it, and label versions.

3D Slicer downloads images without its token, so the id itself carries a short-lived capability; and
the protocol has no label versions, so the id also records which ones its holder was given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from itsdangerous import BadData, SignatureExpired, URLSafeTimedSerializer

from atlas_review.errors import NotSignedIn

_SEPARATOR: Final = "~"
"""Does not occur in case ids."""

_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)+")
"""OHIF's plug-in knows an image by its SeriesInstanceUID alone."""


@dataclass(frozen=True)
class ImageId:
    """The content of an id.

    Attributes:
        case_id: which case.
        may_download: it carries a capability that has not expired.
        holder: user whom it was given to.
        bases: organ → id of the label version that its holder was given; None in a plain case id.
    """

    case_id: str
    may_download: bool = False
    holder: str = ""
    bases: dict[str, str] | None = None


class ImageIds:
    """Signs and reads ids.

    Args:
        secret: signing key.
        lifetime_s: how long an image can be downloaded by its id.
        case_of_series: the case that came as the series of a UID; None: all ids are cases'.
    """

    def __init__(
        self,
        secret: bytes,
        lifetime_s: float,
        case_of_series: Callable[[str], str] | None = None,
    ) -> None:
        self._case_of_series = case_of_series
        self._signer = URLSafeTimedSerializer(secret, salt="atlasloop.monai.image")
        self._lifetime_s = int(lifetime_s)

    def make(self, case_id: str, bases: dict[str, str], holder: str) -> str:
        """The id of a case, for somebody who may see it."""
        content = {"case": case_id, "bases": bases, "holder": holder}
        return f"{case_id}{_SEPARATOR}{self._signer.dumps(content)}"

    def read(self, text: str) -> ImageId:
        """The content of an id; a plain case id, or the UID of a series, carries nothing else.

        Raises:
            NotSignedIn: the signature is not ours.
            NotFound: no case came as this series.
        """
        case_id, _, token = text.partition(_SEPARATOR)
        if not token:
            if self._case_of_series is not None and _UID.fullmatch(case_id):
                return ImageId(self._case_of_series(case_id))
            return ImageId(case_id)
        try:
            content = self._signer.loads(token, max_age=self._lifetime_s)
            may_download = True
        except SignatureExpired as error:
            content, may_download = self._expired_content(error), False
        except BadData:
            raise NotSignedIn({}) from None
        if content["case"] != case_id:
            raise NotSignedIn({})
        # Ids of earlier versions, which live for an hour, name no holder.
        return ImageId(case_id, may_download, content.get("holder", ""), content["bases"])

    def _expired_content(self, error: SignatureExpired) -> Any:
        # Drawing may take longer than a download is allowed: the bases remain valid.
        assert error.payload is not None
        return self._signer.load_payload(error.payload)
