"""A replica that starts during a long run gets work: real gRPC servers, a name server of ours."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from atlas_attention.server.server import server_options
from atlas_attention.settings import AttentionSettings
from atlasloop.attention.v1 import attention_pb2 as pb
from atlasloop.attention.v1 import attention_pb2_grpc as stubs
from atlasloop.client import AttentionClient
from ports import free_port

AGE_S = 1.0


class Replica(stubs.AttentionServiceServicer):
    """Counts its calls; one that is told to wait is under way until it may end."""

    def __init__(self) -> None:
        self.calls = 0
        self.waits: threading.Event | None = None
        self.waiting = threading.Event()

    def GetInfo(self, request: object, context: object) -> pb.GetInfoResponse:
        self.calls += 1
        if self.waits is not None:
            waits, self.waits = self.waits, None
            self.waiting.set()
            waits.wait()
        return pb.GetInfoResponse()


@contextmanager
def serving(replica: Replica, address: str) -> Iterator[None]:
    options = server_options(AttentionSettings(max_connection_age_s=AGE_S), 8)
    server = grpc.server(ThreadPoolExecutor(8), options=options)
    stubs.add_AttentionServiceServicer_to_server(replica, server)  # type: ignore[no-untyped-call]
    assert server.add_insecure_port(address)
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


class Names:
    """A name server that answers every question with the same addresses (RFC 1035)."""

    def __init__(self) -> None:
        self.addresses = ["127.0.0.1"]
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while True:
            question, client = self._socket.recvfrom(512)
            end = question.index(b"\0", 12) + 5
            (kind,) = struct.unpack("!H", question[end - 4 : end - 2])
            found = self.addresses if kind == 1 else []
            head = question[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0)
            records = b"".join(
                b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(address)
                for address in found
            )
            self._socket.sendto(head + question[12:end] + records, client)


def test_a_new_replica_gets_work_and_no_call_is_cancelled() -> None:
    names, port = Names(), free_port()
    first, second = Replica(), Replica()
    address = f"dns://127.0.0.1:{names.port}/attention.test:{port}"
    may_end = threading.Event()
    with (
        serving(first, f"127.0.0.1:{port}"),
        AttentionClient(address) as client,
        ThreadPoolExecutor(1) as aside,
    ):
        first.waits = may_end
        under_way = aside.submit(client._stub.GetInfo, pb.GetInfoRequest())
        first.waiting.wait()
        with serving(second, f"127.0.0.2:{port}"):
            names.addresses.append("127.0.0.2")
            tries = 0
            while not second.calls:
                client._stub.GetInfo(pb.GetInfoRequest())
                tries += 1
                assert tries < 100_000
            assert first.calls >= tries
            # Older than any connection may be, and answered all the same.
            assert not under_way.done()
            may_end.set()
            assert under_way.result() == pb.GetInfoResponse()


def test_an_age_that_would_end_every_call_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        AttentionSettings(max_connection_age_s=0)
