"""Vector search larger than the device: resident codes with exact rerank, and lists streamed through it.

Names are loaded on first use, so `import retrieval.streamed` does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.streamed.coarse import assign, train_centroids
    from retrieval.streamed.coded_index import CodedIndex
    from retrieval.streamed.device_memory import DeviceMemory, DeviceMemoryExceeded
    from retrieval.streamed.devices import CudaDevice, SimulatedDevice, device_named
    from retrieval.streamed.host_lists import HostLists
    from retrieval.streamed.streamed_index import StreamedIndex, Traffic

_HOME = {
    "coarse": ("assign", "train_centroids"),
    "coded_index": ("CodedIndex",),
    "device_memory": ("DeviceMemory", "DeviceMemoryExceeded"),
    "devices": ("CudaDevice", "SimulatedDevice", "device_named"),
    "host_lists": ("HostLists",),
    "streamed_index": ("StreamedIndex", "Traffic"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "CodedIndex",
    "CudaDevice",
    "DeviceMemory",
    "DeviceMemoryExceeded",
    "HostLists",
    "SimulatedDevice",
    "StreamedIndex",
    "Traffic",
    "assign",
    "device_named",
    "train_centroids",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'retrieval.streamed' has no attribute {name!r}")
    return getattr(import_module(f"retrieval.streamed.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
