"""The shared memory that one window in flight occupies."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from atlas_attention.triton.client import CONTROL_TIMEOUT_S
from atlas_attention.triton.cuda_shared_memory import CudaRegion
from atlas_attention.triton.shared_memory import SharedRegion

AnyRegion = SharedRegion | CudaRegion


@dataclass(eq=False)
class WindowBuffers:
    """The buffers of one window: an input region that all models read, an output region for each.

    Attributes:
        window: float32 ``[z, y, x]``, Hounsfield units; None while the buffers are free.
        pending: requests for the window that have not ended.
        tainted: a request ended without an answer, so the server may still use the regions.
        quarantined: tainted, and every request has ended. No request may join until the server has
            released the regions.
        outputs: by the model's reference.
        registered: names of the regions that the server has been asked to map.
        tensor: the window as staged for the server; None until its first request.
        lock: held while a request is prepared.
    """

    window: NDArray[np.float32] | None = None
    pending: int = 0
    tainted: bool = False
    quarantined: bool = False
    input: AnyRegion | None = None
    outputs: dict[str, AnyRegion] = field(default_factory=dict)
    registered: set[str] = field(default_factory=set)
    tensor: triton.InferInput | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def regions(self) -> list[AnyRegion]:
        """The regions that exist."""
        return [r for r in (self.input, *self.outputs.values()) if r is not None]

    def register(self, client: triton.InferenceServerClient, region: AnyRegion) -> None:
        """Has the server map `region`, unless it has been asked before."""
        if region.name not in self.registered:
            register_region(client, region)
            self.registered.add(region.name)

    def register_again(self, client: triton.InferenceServerClient) -> None:
        """Has a server that was restarted map all regions."""
        with self.lock:
            for region in self.regions():
                register_region(client, region)
                self.registered.add(region.name)


def register_region(client: triton.InferenceServerClient, region: AnyRegion) -> None:
    """Has the server map `region`."""
    try:
        if isinstance(region, CudaRegion):
            client.register_cuda_shared_memory(
                region.name, region.key, 0, region.size, client_timeout=CONTROL_TIMEOUT_S
            )
        else:
            client.register_system_shared_memory(
                region.name, region.key, region.size, client_timeout=CONTROL_TIMEOUT_S
            )
    except InferenceServerException as error:
        # Names are unique, so this is the very region: after a restart of the server another
        # request for the same window may have registered it first.
        if "already in manager" not in error.message():
            raise


def unregister_region(client: triton.InferenceServerClient, region: AnyRegion) -> None:
    """Has the server unmap `region`."""
    if isinstance(region, CudaRegion):
        client.unregister_cuda_shared_memory(region.name, client_timeout=CONTROL_TIMEOUT_S)
    else:
        client.unregister_system_shared_memory(region.name, client_timeout=CONTROL_TIMEOUT_S)
