"""The pixels of one DICOM slice, as they are stored: decoded in the bounds that its header sets."""

from __future__ import annotations

from io import BufferedReader
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from openjpeg.utils import get_parameters
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from atlas_core.errors import AtlasError, CorruptFile, UnsupportedVolume
from atlas_core.imaging.dicom_slices import (
    MAX_FILE_BYTES,
    MAX_MULTIFRAME_BYTES,
    DicomSlice,
    begins_with_an_element,
    opened,
)

MAX_RLE_BYTES_PER_PIXEL = 8
"""Of run lengths, at most: twice what 32 bits need."""

RLE_HEADER_BYTES = 64

DECODERS = {
    **dict.fromkeys(JPEG2000TransferSyntaxes, "pylibjpeg"),  # HTJ2K is among them
    **dict.fromkeys(JPEGLSTransferSyntaxes, "pyjpegls"),
    **dict.fromkeys(JPEGTransferSyntaxes, "gdcm"),
}
"""pydicom's plug-ins, chosen: its own choice depends on what else is installed."""

_FRAME_HEADERS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
"""Markers of JPEG and JPEG-LS before the size of an image."""


def pixel_bytes(file: Path) -> bytes:
    """The pixel data as it is stored, with what it takes to read it.

    Raises:
        Exception: whatever pydicom raises on damaged files.
    """
    names = ["PixelData", "RescaleSlope", "RescaleIntercept"]
    with opened(file) as stream:
        tags = dcmread(stream, specific_tags=names, force=True)
    rescaled = f"{tags.get('RescaleSlope')} {tags.get('RescaleIntercept')} "
    return rescaled.encode() + bytes(tags.PixelData)


def read_pixels(one: DicomSlice) -> NDArray[Any]:
    """Stored numbers of one slice, ``[row, column]``.

    Raises:
        UnsupportedVolume: no decoder for its compression.
        CorruptFile: the pixel data is damaged, or has another size than the header says.
    """
    try:
        limit = MAX_FILE_BYTES if one.frame is None else MAX_MULTIFRAME_BYTES
        with opened(one.file, limit) as stream:
            _require_decoder(one.syntax)
            if one.syntax in (*DECODERS, RLELossless):
                _require_bounded(one, stream)
                stream.seek(0)
            stored: NDArray[Any] = pixel_array(
                _complete(stream, one.syntax),
                raw=True,
                index=one.frame,
                decoding_plugin=DECODERS.get(one.syntax, ""),
            )
    except AtlasError:
        raise
    # Decoders of third parties raise what they like on damaged data; what it says may name the
    # file.
    except Exception as error:
        raise CorruptFile(
            "pixel data of a slice cannot be decoded",
            got=f"{one.syntax.name}: {type(error).__name__}",
            remedy="copy the series again, or decompress it with another tool",
        ) from None
    columns, rows = one.size
    if stored.shape != (rows, columns):
        raise CorruptFile(
            "pixel data of a slice has another size than its header",
            expected=(rows, columns),
            got=stored.shape,
            remedy="copy the series again",
        )
    return stored


def _complete(stream: BufferedReader, syntax: UID) -> BufferedReader | Dataset:
    """The file, or its data set where it lacks what pydicom asks for."""
    bare = begins_with_an_element(stream.read(8))
    stream.seek(0)
    if not bare:
        return stream
    dataset = dcmread(stream, force=True)
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _require_decoder(syntax: UID) -> None:
    """Raises:
    UnsupportedVolume: this installation cannot decode the compression.
    """
    try:
        decoder = get_decoder(syntax)
        wanted = DECODERS.get(syntax)
        if decoder.is_available if wanted is None else wanted in decoder.available_plugins:
            return
    except NotImplementedError:
        pass
    raise UnsupportedVolume(
        "no decoder for the compression of a slice",
        got=syntax.name,
        remedy="decompress the series first (gdcmconv --raw, dcmdjpeg, dcmdjpls)",
    )


def _require_bounded(one: DicomSlice, stream: BufferedReader) -> None:
    """Compressed pixels may need no more memory than the header's size: decoders check it last.

    Raises:
        CorruptFile: an image of another size, or more run lengths than pixels need.
    """
    pixels = one.size[0] * one.size[1]
    tags = dcmread(stream, specific_tags=["PixelData", "NumberOfFrames"])
    count = 1 if one.frame is None else int(tags.NumberOfFrames)
    frame = get_frame(tags.PixelData, one.frame or 0, number_of_frames=count)
    if one.syntax == RLELossless:
        if len(frame) > MAX_RLE_BYTES_PER_PIXEL * pixels + RLE_HEADER_BYTES:
            raise CorruptFile(
                "pixel data of a slice is too long",
                expected=f"{pixels} pixels",
                got=f"{len(frame)} bytes",
                remedy="copy the series again",
            )
        return
    if one.syntax in JPEG2000TransferSyntaxes:
        image = get_parameters(frame)
        found = (image["columns"], image["rows"], image["samples_per_pixel"])
    else:
        found = _jpeg_size(frame)
    if found != (*one.size, 1):
        raise CorruptFile(
            "pixel data of a slice has another size than its header",
            expected=(*one.size, 1),
            got=found,
            remedy="copy the series again",
        )


def _jpeg_size(frame: bytes) -> tuple[int, int, int]:
    """Columns, rows and samples of a JPEG or JPEG-LS image, by its frame header; 0 without one."""
    at = 2
    while at + 9 < len(frame) and frame[at] == 0xFF:
        if frame[at + 1] == 0xFF:  # fills up
            at += 1
        elif frame[at + 1] in _FRAME_HEADERS:
            rows, columns = (int.from_bytes(frame[n : n + 2], "big") for n in (at + 5, at + 7))
            return columns, rows, frame[at + 9]
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return 0, 0, 0
