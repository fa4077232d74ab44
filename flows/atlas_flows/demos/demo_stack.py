"""The embedded stack of a demonstration, with data and ports of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from atlas_core.errors import Conflict
from atlas_embedded.settings import HOST, ComponentName, EmbeddedSettings, sqlite_url
from filelock import FileLock, Timeout


def demo_settings(home: Path, parts: Sequence[ComponentName], **fields: object) -> EmbeddedSettings:
    """Settings of a stack in `home`: the usual ports where they are free, others where not."""
    names = [name for name in EmbeddedSettings.model_fields if name.endswith("_port")]
    usual = EmbeddedSettings(home=home)
    chosen: dict[str, int] = {}
    with contextlib.ExitStack() as held:
        for name in names:
            chosen[name] = _hold_port(held, getattr(usual, name))
    return EmbeddedSettings(
        home=home,
        # Never the store or catalog that the environment may name.
        store=home / "store",
        catalog_url=sqlite_url(home.absolute() / "catalog.sqlite"),
        components=tuple(parts),
        **chosen,  # type: ignore[arg-type]  # fields named *_port are ports
        **fields,  # type: ignore[arg-type]  # checked by the class
    )


def _hold_port(held: contextlib.ExitStack, wanted: int) -> int:
    """`wanted` if it is free, else any free port; bound until `held` closes."""
    for port in (wanted, 0):
        listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            continue
        return int(listener.getsockname()[1])
    raise Conflict("no port is free on this machine")


def use_stack(settings: EmbeddedSettings) -> None:
    """Point this process to the demo's stack, whatever addresses its environment names."""
    os.environ.update(settings.environment())
    for elsewhere in ("TRITON_ADDRESS", "TRITON_CONTROL_KEY", "MODEL_REPOSITORY", "MODEL_STORE",
                      "TRAINING_RUNS"):  # fmt: skip
        os.environ.pop(f"ATLASLOOP_{elsewhere}", None)
    os.environ.update(
        # A demonstration has few cases, and nobody relies on what it promotes.
        ATLASLOOP_PROMOTION_MIN_CASES="1",
        ATLASLOOP_CATALOG_URL=settings.catalog_url,
        ATLASLOOP_STORE=str(settings.store),
        ATLASLOOP_ATTENTION_ADDRESS=settings.attention_address,
        ATLASLOOP_PREFECT_API_URL=settings.prefect_api_url,
        ATLASLOOP_REVIEW_URL=settings.review_url,
    )


@contextlib.contextmanager
def exclusive_demo(home: Path) -> Iterator[None]:
    """Keep a second demo out; the kernel releases the lock if this process dies.

    Raises:
        Conflict: another demo is running.
    """
    try:
        held = FileLock(home / "demo.lock").acquire(blocking=False)
    except Timeout:
        raise Conflict(
            "another demo is running here", remedy="wait for it, or use another --home"
        ) from None
    with held:
        yield


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does, with its stack stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """A second Ctrl-C must not leave half a stack behind; stopping takes seconds."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
