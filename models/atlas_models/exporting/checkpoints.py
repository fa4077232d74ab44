"""Reads weights from elsewhere without running any code that they may carry.

A ``.pt`` or ``.pth`` file is a pickle, and a pickle is a program. PyTorch's ``weights_only`` reader
interprets it itself and builds tensors, numbers, text, lists and dictionaries only; what asks for
anything else is refused. ``.safetensors`` holds no code at all.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from atlas_core.errors import CorruptFile, InvalidInput, NotFound

_SCALAR = np.float64(0).__reduce__()[0]
"""What NumPy rebuilds its numbers with when they are unpickled."""

_NUMBERS: list[Any] = [
    # nnU-Net logs scores as NumPy numbers. Both names: pickles outlive the module they name.
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.float32,
    np.float64,
    np.int64,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64, np.bool_)),
]


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """What a checkpoint holds: tensors by name, or a dictionary with such a dictionary in it.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it asks for code to be run, or holds something else than a dictionary.
        CorruptFile: it cannot be read to its end.
    """
    if not path.is_file():
        raise NotFound("the checkpoint is missing", case=path.name)
    content = _safetensors(path) if path.suffix == ".safetensors" else unpickled(path)
    if not isinstance(content, Mapping):
        raise InvalidInput(
            "the checkpoint holds no dictionary",
            case=path.name,
            expected="tensors by name",
            got=type(content).__name__,
            remedy="save the network's state_dict(), not the network",
        )
    return content


def tensors_of(content: Mapping[str, Any], key: str, case: str) -> dict[str, torch.Tensor]:
    """The tensors by name that lie under `key` of a checkpoint.

    Raises:
        InvalidInput: there is no such entry, or it holds other things than tensors.
    """
    found = content.get(key)
    if not isinstance(found, Mapping):
        raise InvalidInput(
            f"the checkpoint has no entry {key!r}",
            case=case,
            expected=f"{key}: tensors by name",
            got=", ".join(sorted(map(str, content))[:8]) or "nothing",
        )
    return _only_tensors(found, case)


def _only_tensors(found: Mapping[Any, Any], case: str) -> dict[str, torch.Tensor]:
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InvalidInput(
                "the checkpoint holds other things than tensors among its weights",
                case=case,
                got=f"{name}: {type(value).__name__}",
            )
    return dict(found)


def _safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CorruptFile("the weights cannot be read", case=path.name, got=error) from None


def unpickled(path: Path) -> Any:
    """What `torch.save` wrote to `path`, read without running code.

    Raises:
        InvalidInput: it asks for code to be run.
        CorruptFile: it cannot be read to its end, or unpacks to more than it holds.
    """
    _require_uncompressed(path)
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from None
    # Whatever a program of arbitrary bytes can make its interpreter raise.
    except Exception as error:
        raise CorruptFile(
            "the checkpoint cannot be read",
            case=path.name,
            expected="a complete file of torch.save",
            got=_first_line(error),
        ) from None


def _require_uncompressed(path: Path) -> None:
    """Refuses a zip bomb: PyTorch stores tensors as they are, but would unpack compressed ones,
    a thousand times as large as the file, into memory.

    Raises:
        CorruptFile: an entry is compressed, or entries overlap.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return  # the format before PyTorch 1.6, or damaged: the reader says which
    unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CorruptFile(
            "the checkpoint unpacks to more than it holds",
            case=path.name,
            expected="a file of torch.save, which does not compress",
            got=f"{unpacked} bytes out of {size}",
        )


def _refusal(path: Path, error: pickle.UnpicklingError) -> InvalidInput | CorruptFile:
    if re.search(r"Unsupported (global|class)|GLOBAL|blocked", str(error)):
        return InvalidInput(
            "the checkpoint wants to run code, which is refused",
            case=path.name,
            expected="tensors, numbers and text only",
            got=_first_line(error),
            remedy="load it where you trust it, and save its state_dict() as .safetensors",
        )
    return CorruptFile(
        "the checkpoint cannot be read",
        case=path.name,
        expected="a complete file of torch.save",
        got=_first_line(error),
    )


def _first_line(error: BaseException) -> str:
    """What PyTorch says, without its page of advice to switch the check off."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (telling or lines or [type(error).__name__])[0].partition(" was not an allowed")[0][:200]
