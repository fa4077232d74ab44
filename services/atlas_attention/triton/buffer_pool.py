"""The buffers of all windows in flight: a fixed number, which bounds memory and the server's work.

Buffers whose request ended without an answer (timed out, connection lost) are quarantined: the
server may still read or write their regions, so they are used again only after the server has
unmapped them.
"""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import tritonclient.grpc as triton
from atlas_core.errors import Unavailable
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from atlas_attention.triton.errors import ServerUnreachable, status_name, translate
from atlas_attention.triton.window_buffers import WindowBuffers, unregister_region

CLOSE_TIMEOUT_S = 10.0
"""How long closing waits for the server to release regions; they are unlinked in any case."""

RETRY_S = 0.02
"""Pause between two attempts to take regions back while closing."""

_log = logging.getLogger(__name__)


class BufferPool:
    """Hands buffers to windows and takes them back. Thread-safe.

    Args:
        client: of the server that maps the regions.
        windows: how many windows can be in flight.
        changed: notified whenever that changes; pools of several servers may share one.

    Attributes:
        outage: why the server cannot be reached, as of the last call to it; None: it can.
    """

    def __init__(
        self, client: triton.InferenceServerClient, windows: int, changed: threading.Condition
    ) -> None:
        self._client = client
        self._buffers = [WindowBuffers() for _ in range(windows)]
        self._changed = changed
        self._stopped = False
        self.outage: Unavailable | None = None

    @property
    def in_use(self) -> int:
        """Buffers of windows in flight, and those that the server has not released yet."""
        with self._changed:
            return sum(buffers.window is not None for buffers in self._buffers)

    @property
    def regions(self) -> int:
        """Regions of shared memory that exist now."""
        with self._changed:
            return sum(len(buffers.regions()) for buffers in self._buffers)

    def holds(self, window: NDArray[np.float32]) -> bool:
        """Whether another request for this very window has buffers that can be joined."""
        with self._changed:
            return any(b.window is window and not b.quarantined for b in self._buffers)

    def acquire(self, window: NDArray[np.float32]) -> WindowBuffers | None:
        """The buffers that hold `window` already, or free ones, with one more request pending;
        None: there are none just now, or the pool is stopped."""
        with self._changed:
            if self._stopped:
                return None
            joined = (b for b in self._buffers if b.window is window and not b.quarantined)
            free = (b for b in self._buffers if b.window is None)
            buffers = next(joined, None) or next(free, None)
            if buffers is not None:
                buffers.window = window
                buffers.pending += 1
            return buffers

    def release(self, buffers: WindowBuffers, *, unanswered: bool) -> bool:
        """One request has ended; after the last one the buffers are free, unless quarantined.

        Args:
            unanswered: the server may still be working on the request.

        Returns:
            whether they are quarantined: `reclaim` them until it succeeds.
        """
        with self._changed:
            buffers.tainted |= unanswered
            buffers.pending -= 1
            if buffers.pending:
                return False
            buffers.quarantined = buffers.tainted and bool(buffers.registered)
            if not buffers.quarantined:
                self._free(buffers)
            return buffers.quarantined

    def reclaim(self, buffers: WindowBuffers) -> bool:
        """Try to free quarantined buffers; False while the server still uses their regions."""
        if not self._unregister(buffers):
            return False
        self._free(buffers)
        return True

    def stop(self) -> bool:
        """Refuse all windows from now on; False if that was so already."""
        with self._changed:
            if self._stopped:
                return False
            self._stopped = True
            self._changed.notify_all()
            return True

    def wait_until_free(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Until no buffers are in use, the server is unreachable, or `timeout_s` is over."""
        with self._changed:
            self._changed.wait_for(lambda: not self.in_use or self.outage is not None, timeout_s)

    def close(self) -> None:
        """Take all regions back from the server, as far as it can be reached, and unlink them."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for buffers in self._buffers:
            # A request that was answered just now may count as running for a moment.
            while self.outage is None and not self._unregister(buffers):
                if time.monotonic() > deadline:
                    _log.warning("the model server still uses shared regions; they are unlinked")
                    break
                time.sleep(RETRY_S)
            for region in buffers.regions():
                region.close()

    def _free(self, buffers: WindowBuffers) -> None:
        with self._changed:
            buffers.window, buffers.tensor = None, None
            buffers.tainted = buffers.quarantined = False
            self._changed.notify_all()

    def _unregister(self, buffers: WindowBuffers) -> bool:
        """Have the server unmap the regions of `buffers`; False while it does not."""
        for region in buffers.regions():
            if region.name not in buffers.registered:
                continue
            try:
                unregister_region(self._client, region)
            except InferenceServerException as error:
                failure = translate(error)
                if isinstance(failure, ServerUnreachable):
                    self.outage = failure
                    return False
                if "in use" in error.message() or status_name(error) == "DEADLINE_EXCEEDED":
                    return False
                # Any other refusal means that the server does not know the region (any more).
            self.outage = None
            buffers.registered.discard(region.name)
        return True
