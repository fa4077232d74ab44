"""A link between two network namespaces that delays and loses packets, for kernels without netem.

    python benchmarks/simulated/slow_link.py NAMESPACE ADDRESS NAMESPACE ADDRESS DELAY_MS LOSS

Each end is a TUN device, ``link0``, with its address in a /30; this process carries the packets.
`LOSS` is a share, 0 to 1, of each direction; `DELAY_MS` is one way. Says ``up`` once it carries.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

DEVICE = "link0"
MTU = 9000
_TUNSETIFF = 0x400454CA
_IFF_TUN_WITHOUT_HEADER = 0x1001
_CLONE_NEWNET = 0x40000000
LONGEST_QUEUE = 4096
"""Packets on their way; more are lost, as in a switch."""


def open_end(namespace: str, address: str) -> int:
    """Descriptor of a new TUN device in `namespace`."""
    with Path("/run/netns", namespace).open("rb") as entry:
        if ctypes.CDLL(None, use_errno=True).setns(entry.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter namespace {namespace}")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    wanted = struct.pack("16sH", DEVICE.encode(), _IFF_TUN_WITHOUT_HEADER)
    fcntl.ioctl(descriptor, _TUNSETIFF, wanted)
    for words in (
        ("addr", "add", f"{address}/30", "dev", DEVICE),
        ("link", "set", DEVICE, "mtu", str(MTU), "up"),
    ):
        subprocess.run(["ip", "-n", namespace, *words], check=True)
    return descriptor


def carry(one: int, other: int, delay_s: float, loss: float) -> None:
    """From each end to the other, until it is killed."""
    waiting: dict[int, deque[tuple[float, bytes]]] = {one: deque(), other: deque()}
    to = {one: other, other: one}
    chance = random.Random(0)
    while True:
        now = time.monotonic()
        due = [queue[0][0] - now for queue in waiting.values() if queue]
        ready, _, _ = select.select([one, other], [], [], max(0.0, min(due)) if due else None)
        now = time.monotonic()
        for end in ready:
            _take_in(end, waiting[to[end]], now + delay_s, loss, chance)
        for end, queue in waiting.items():
            while queue and queue[0][0] <= now:
                _, packet = queue.popleft()
                try:
                    os.write(end, packet)
                except BlockingIOError:
                    break  # a full device loses packets, too


def _take_in(
    end: int, queue: deque[tuple[float, bytes]], due: float, loss: float, chance: random.Random
) -> None:
    for _ in range(64):
        try:
            packet = os.read(end, MTU + 64)
        except BlockingIOError:
            return
        if chance.random() >= loss and len(queue) < LONGEST_QUEUE:
            queue.append((due, packet))


def main(arguments: list[str]) -> None:
    first, first_address, second, second_address, delay_ms, loss = arguments
    ends = open_end(first, first_address), open_end(second, second_address)
    print("up", flush=True)
    carry(*ends, float(delay_ms) / 1000, float(loss))


if __name__ == "__main__":
    main(sys.argv[1:])
