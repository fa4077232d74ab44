"""Image ids for MONAI Label clients: the case, with what a download needs and a hand-in is made of.

3D Slicer downloads images without its token, so the id itself carries a capability that ends soon;
and the protocol knows no versions, so the id also says which labels its holder was given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from itsdangerous import BadData, SignatureExpired, URLSafeTimedSerializer

from atlas_review.problems import NotSignedIn

_MARK: Final = "~"
"""Occurs in no case id."""


@dataclass(frozen=True)
class ImageId:
    """What an id says.

    Attributes:
        case_id: which case.
        may_download: it holds a capability that has not ended.
        bases: organ → version that its holder was given; None: it does not say.
    """

    case_id: str
    may_download: bool = False
    bases: dict[str, str] | None = None


class ImageIds:
    """Makes and reads ids.

    Args:
        secret: signs them.
        lasts_s: how long an image can be downloaded by its id.
    """

    def __init__(self, secret: bytes, lasts_s: float) -> None:
        self._signer = URLSafeTimedSerializer(secret, salt="atlasloop.monai.image")
        self._lasts_s = int(lasts_s)

    def make(self, case_id: str, bases: dict[str, str]) -> str:
        """The id of a case for somebody who may see it."""
        return f"{case_id}{_MARK}{self._signer.dumps({'case': case_id, 'bases': bases})}"

    def read(self, text: str) -> ImageId:
        """What `text` says; a plain case id says no more than that.

        Raises:
            NotSignedIn: the signature is not ours.
        """
        case_id, _, token = text.partition(_MARK)
        if not token:
            return ImageId(case_id)
        try:
            content = self._signer.loads(token, max_age=self._lasts_s)
            live = True
        except SignatureExpired as error:
            content, live = self._expired(error), False
        except BadData:
            raise NotSignedIn({}) from None
        if content["case"] != case_id:
            raise NotSignedIn({})
        return ImageId(case_id, live, content["bases"])

    def _expired(self, error: SignatureExpired) -> Any:
        # Whoever drew for longer than a download may take still knows what he drew on.
        assert error.payload is not None
        return self._signer.load_payload(error.payload)
