"""HTTP connections that clients cannot hold for nothing.

uvicorn waits for ever for the rest of a request, and for a client that does not read its answer; a
few hundred of such connections use up the process's sockets.
"""

from __future__ import annotations

import asyncio
import resource
from typing import ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MIN_BYTES_PER_S: Final = 1024
"""Of a body that is not complete; the slowest line that somebody works with is faster."""

SLOW_WINDOWS: Final = 3
"""After so many timeouts in a row with less than that, a body is given up."""

MAX_HEAD_BYTES: Final = 64 << 10
"""Request line and headers; most servers and proxies stop at 8 or 16 KiB."""

_REFUSAL: Final = b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class BoundedConnection(HttpToolsProtocol):
    """One connection; its patience is uvicorn's ``timeout_keep_alive``, in seconds.

    A client may take that long to send the head of a request, from its connection or from the last
    answer on; three times as long without `MIN_BYTES_PER_S` of a body, or without reading any of an
    answer. Of the connections on which no request is under way, the oldest gives way where they
    would use up half of the process's files.
    """

    _head_since: float | None
    _waiting: ClassVar[dict[BoundedConnection, None]] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_bytes = self._body_bytes = self._unread = self._slow = 0
        self._await_head()
        if len(self._waiting) > resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
            next(iter(self._waiting)).transport.abort()
        self._check = self.loop.call_later(self.timeout_keep_alive, self._check_progress)

    def connection_lost(self, exc: Exception | None) -> None:
        self._check.cancel()
        self._waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_since is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        # A head that came with its body in one piece is complete by now.
        if self._head_since is not None and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")

    def on_headers_complete(self) -> None:
        self._head_since = None
        self._waiting.pop(self, None)
        self._head_bytes = self._body_bytes = self._slow = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        self._await_head()
        super().on_response_complete()

    def _await_head(self) -> None:
        self._head_since = self.loop.time()
        self._waiting.pop(self, None)
        self._waiting[self] = None

    def _check_progress(self) -> None:
        """Every `timeout_keep_alive`."""
        patience = self.timeout_keep_alive
        self._check = self.loop.call_later(patience, self._check_progress)
        if self.cycle is None or self.cycle.response_complete:
            since = self._head_since
            if since is not None and self.loop.time() - since >= patience:
                self._refuse(b"408 Request Timeout")
            return
        enough = MIN_BYTES_PER_S * patience
        unread = self.transport.get_write_buffer_size()
        if unread:  # more than before: it has read what was there, and got the next piece
            slow = 0 <= self._unread - unread < enough
        else:
            slow = self.cycle.more_body and not self.flow.read_paused and self._body_bytes < enough
        self._slow = self._slow + 1 if slow else 0
        self._unread, self._body_bytes = unread, 0
        if self._slow >= SLOW_WINDOWS:
            self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        busy = self.cycle is not None and not self.cycle.response_complete
        if self.transport.get_write_buffer_size() or (busy and self.cycle.response_started):
            self.transport.abort()  # what is left of an answer would never be read
            return
        if busy or self._head_bytes:  # to a client that has sent nothing there is nothing to say
            self.transport.write(_REFUSAL % status)
        self.transport.close()
