"""What the CUDA driver says of a GPU's memory, asked without FAISS or torch, which take seconds to load."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from retrieval.vectors.types import NoSuchDevice


def ordinal(device: str) -> int:
    """Return the GPU a device setting names: 1 of `cuda:1`, 0 of `cuda` and `auto`."""
    return int(device.partition(":")[2] or 0)


def free_bytes(device: str) -> int:
    """Return the memory a GPU has free; the first call opens a context there, which takes some itself.

    Raises:
        NoSuchDevice: There is no driver or no such device.
    """
    driver, handle, context = _driver(), ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _run(
        device,
        [
            lambda: driver.cuInit(0),
            lambda: driver.cuDeviceGet(ctypes.byref(handle), ordinal(device)),
            lambda: driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle),
            lambda: driver.cuCtxPushCurrent_v2(context),
            lambda: driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)),
            lambda: driver.cuCtxPopCurrent_v2(ctypes.byref(context)),
        ],
    )
    return free.value


def total_bytes(device: str) -> int:
    """Return the memory a GPU has; nothing is opened there.

    Raises:
        NoSuchDevice: There is no driver or no such device.
    """
    driver, handle, total = _driver(), ctypes.c_int(), ctypes.c_size_t()
    _run(
        device,
        [
            lambda: driver.cuInit(0),
            lambda: driver.cuDeviceGet(ctypes.byref(handle), ordinal(device)),
            lambda: driver.cuDeviceTotalMem_v2(ctypes.byref(total), handle),
        ],
    )
    return total.value


def _driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise NoSuchDevice(f"the CUDA driver cannot be loaded: {error}; use a CPU kind") from error


def _run(device: str, steps: Sequence[Callable[[], int]]) -> None:
    for step in steps:
        code = step()
        if code:
            raise NoSuchDevice(f"the CUDA driver refused device '{device}' with error {code}")
