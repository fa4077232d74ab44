"""The vault: the key of all pseudonyms, whose they are, and the headers of what came in.

A database of its own, which only the data manager's role can open. What it holds is needed for one
thing: to send results back to the study that they belong to. Without it, the atlas is whole, and
nobody can tell whose CTs it has; see `docs/how-to/connect-a-pacs.md` for what losing it means.
"""

from __future__ import annotations

import io
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import sqlalchemy as sa
from pydicom import Dataset, dcmread
from sqlalchemy.exc import DatabaseError

from atlas_core.catalog import insert_new, make_engine
from atlas_core.errors import ConfigurationError, NotFound, Unavailable
from atlas_core.pacs.pseudonyms import Pseudonyms

KEY_BYTES: Final = 32

_metadata = sa.MetaData()
_keys = sa.Table(
    "vault_keys",
    _metadata,
    sa.Column("name", sa.String(16), primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)
_names = sa.Table(
    "vault_names",
    _metadata,
    sa.Column("pseudonym", sa.String(64), primary_key=True),
    sa.Column("original", sa.String, nullable=False),
)
_images = sa.Table(
    "vault_images",
    _metadata,
    sa.Column("image", sa.String(64), primary_key=True),
    sa.Column("series", sa.String(64), nullable=False, index=True),
    sa.Column("pixels_sha256", sa.String(64), nullable=False),
    sa.Column("header", sa.LargeBinary, nullable=False),
)


NO_RIGHT: Final = "42501"
"""PostgreSQL's code of a right that is missing."""


@dataclass(frozen=True)
class SealedImage:
    """What the vault keeps of one image.

    Attributes:
        image: pseudonym of its SOPInstanceUID.
        series: of its SeriesInstanceUID.
        pixels_sha256: of its pixels.
        header: all that its file says without pixels, as it came.
        names: pseudonym → original of everything that was replaced in it.
    """

    image: str
    series: str
    pixels_sha256: str
    header: Dataset
    names: Mapping[str, str]


class Vault:
    """An open vault; a context manager. Safe to share between threads.

    Attributes:
        pseudonyms: by its key, which is made when the vault is first opened.
    """

    def __init__(self, engine: sa.Engine, key: bytes) -> None:
        """Not for callers: use `open`."""
        self._engine = engine
        self._write = engine.execution_options(atlas_write=True)
        self.pseudonyms = Pseudonyms(key)

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the vault at `url` (as a catalog's), and make it if there is none. A file is its
        owner's alone.

        Raises:
            ConfigurationError: malformed address, no vault, or a role that may not read it.
            Unavailable: the database does not answer.
        """
        engine = make_engine(url)
        try:
            with engine.execution_options(atlas_write=True).begin() as connection:
                _metadata.create_all(connection)
                new = {"name": "key", "value": secrets.token_bytes(KEY_BYTES)}
                insert_new(connection, _keys, [new])
                key = connection.scalar(sa.select(_keys.c.value).where(_keys.c.name == "key"))
        except sa.exc.OperationalError as error:
            engine.dispose()
            raise Unavailable(
                "the vault of the pseudonyms does not answer",
                got=type(error.orig).__name__,
                remedy="check ATLASLOOP_PACS_VAULT_URL and the rights of this role",
            ) from None
        except DatabaseError as error:
            engine.dispose()
            if getattr(error.orig, "sqlstate", "") == NO_RIGHT:
                raise ConfigurationError(
                    "this role may not read the vault of the pseudonyms",
                    remedy="give ATLASLOOP_PACS_VAULT_URL the role that owns the vault",
                ) from None
            raise ConfigurationError(
                "this is no vault of pseudonyms", got=type(error.orig).__name__
            ) from None
        return cls(engine, bytes(key or b""))

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def name(self, names: Mapping[str, str]) -> None:
        """Remember originals by their pseudonyms."""
        rows = [{"pseudonym": one, "original": other} for one, other in names.items()]
        with self._write.begin() as connection:
            insert_new(connection, _names, rows)

    def seal(self, image: SealedImage) -> str | None:
        """Remember `image`, unless one of its UID is there.

        Returns:
            Checksum of the pixels of the image that was there; None: there was none.
        """
        row = {
            "image": image.image,
            "series": image.series,
            "pixels_sha256": image.pixels_sha256,
            "header": _packed(image.header),
        }
        names = [{"pseudonym": one, "original": other} for one, other in image.names.items()]
        with self._write.begin() as connection:
            known = connection.scalar(
                sa.select(_images.c.pixels_sha256).where(_images.c.image == image.image)
            )
            if known is None:
                insert_new(connection, _names, names)
                insert_new(connection, _images, [row])
        return known

    def original(self, pseudonym: str) -> str:
        """
        Raises:
            NotFound: this vault has not made the pseudonym.
        """
        query = sa.select(_names.c.original).where(_names.c.pseudonym == pseudonym)
        with self._engine.connect() as connection:
            found: str | None = connection.scalar(query)
        if found is None:
            raise NotFound(
                "the vault does not know this pseudonym",
                got=pseudonym,
                remedy="use the vault that the series came in with (ATLASLOOP_PACS_VAULT_URL)",
            )
        return found

    def images(self, series: str) -> frozenset[str]:
        """Pseudonyms of all images that have ever come of a series."""
        query = sa.select(_images.c.image).where(_images.c.series == series)
        with self._engine.connect() as connection:
            return frozenset(connection.scalars(query))

    def headers(self, series: str) -> list[Dataset]:
        """The original headers of a series, sorted by UID, without pixels."""
        query = sa.select(_images.c.header).where(_images.c.series == series)
        with self._engine.connect() as connection:
            found = [_unpacked(packed) for packed in connection.scalars(query)]
        return sorted(found, key=lambda header: str(header.SOPInstanceUID))

    def forget_images(self, series: str) -> None:
        """Take whatever comes next of `series` as its first."""
        with self._write.begin() as connection:
            connection.execute(sa.delete(_images).where(_images.c.series == series))


def _packed(header: Dataset) -> bytes:
    file = io.BytesIO()
    header.save_as(file, enforce_file_format=True)
    return zlib.compress(file.getvalue())


def _unpacked(packed: bytes) -> Dataset:
    return dcmread(io.BytesIO(zlib.decompress(packed)))
