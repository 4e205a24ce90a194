"""Where pages are copied to: a CUDA device with a copy stream, or host memory that stands for one.

`copy_in` starts a copy that runs beside scoring and returns a ticket, `wait` orders scoring after it, and the
next `copy_in` is ordered after all scoring called for before `computed`. Time spent is measured where it
passes, so that the schedule can balance copies and scoring.

Legend: S slots, R rows a page, D dimensions, N rows in host memory.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

_STAGING_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Run:
    """Rows that lie side by side in host memory and in the slab."""

    row: int
    """First row in host memory."""
    num_rows: int
    """Rows."""
    slot_row: int
    """First row of the slab, counted over all slots."""


class Device(Protocol):
    """Memory that pages are copied to, and the arithmetic beside it."""

    where: torch.device
    """Where the slab lives."""
    batched: bool
    """Whether pages should be scored many to a kernel."""

    def attach(self, vectors_ND: np.ndarray) -> None:
        """Make host memory ready to be copied from."""
        ...

    def copy_in(self, runs: list[Run], slab_SRD: torch.Tensor) -> Any:
        """Start a copy and return its ticket."""
        ...

    def wait(self, ticket: Any) -> None:
        """Let scoring called for from now on see what the copy brought."""
        ...

    def scoring(self) -> None:
        """Mark where scoring begins."""
        ...

    def computed(self) -> None:
        """Mark where scoring ends: the next copy may overwrite what it read."""
        ...

    def seconds(self) -> tuple[float, float]:
        """Return the seconds of copying and of scoring since the last call; waits until both have ended."""
        ...

    def close(self) -> None:
        """Give back what `attach` took."""
        ...


class SimulatedDevice:
    """Host memory in the place of a device; a transfer is a real `memcpy` by a thread beside scoring."""

    def __init__(self, *, batched: bool = False) -> None:
        """Make the device; `batched` scores many pages to a kernel, as a GPU does."""
        self.where = torch.device("cpu")
        self.batched = batched
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="copy")
        self._vectors_ND = np.empty((0, 0), dtype=np.float32)
        self._copy_s = self._score_s = self._began_s = 0.0

    def attach(self, vectors_ND: np.ndarray) -> None:
        """Keep the array or memory map to copy from."""
        self._vectors_ND = vectors_ND

    def _copy(self, runs: list[Run], rows_XD: np.ndarray) -> None:
        began_s = time.perf_counter()
        for run in runs:
            source = self._vectors_ND[run.row : run.row + run.num_rows]
            np.copyto(rows_XD[run.slot_row : run.slot_row + run.num_rows], source)
        self._copy_s += time.perf_counter() - began_s

    def copy_in(self, runs: list[Run], slab_SRD: torch.Tensor) -> Future[None]:
        """Start a copy in the copier's thread."""
        return self._copier.submit(self._copy, runs, slab_SRD.numpy().reshape(-1, slab_SRD.shape[-1]))

    def wait(self, ticket: Future[None]) -> None:
        """Block until the copy has ended."""
        ticket.result()

    def scoring(self) -> None:
        """Start the clock."""
        self._began_s = time.perf_counter()

    def computed(self) -> None:
        """Stop the clock; scoring here has ended when its call returned."""
        self._score_s += time.perf_counter() - self._began_s

    def seconds(self) -> tuple[float, float]:
        """Return and reset the clocks."""
        spent = (self._copy_s, self._score_s)
        self._copy_s = self._score_s = 0.0
        return spent

    def close(self) -> None:
        """End the copier's thread."""
        self._copier.shutdown()


class _PageLocks:
    """Arrays page-locked in this process: CUDA locks one once, and several indexes may share it."""

    def __init__(self) -> None:
        self._users: dict[int, int] = {}
        self._lock = threading.Lock()

    def take(self, host_ND: torch.Tensor) -> None:
        """Lock an array, or count one more user of it.

        Raises:
            RuntimeError: The system refuses.
        """
        address = host_ND.data_ptr()
        with self._lock:
            if address not in self._users:
                runtime: Any = torch.cuda.cudart()
                failed = int(runtime.cudaHostRegister(address, host_ND.nbytes, 0))
                if failed:
                    raise RuntimeError(
                        f"cannot page-lock {host_ND.nbytes:,} bytes of lists (CUDA error {failed}); raise "
                        "the locked-memory limit, or keep the lists in a folder"
                    )
            self._users[address] = self._users.get(address, 0) + 1

    def release(self, host_ND: torch.Tensor) -> None:
        """Unlock an array when its last user is gone."""
        address = host_ND.data_ptr()
        with self._lock:
            self._users[address] -= 1
            if not self._users[address]:
                del self._users[address]
                runtime: Any = torch.cuda.cudart()
                runtime.cudaHostUnregister(address)


_PAGE_LOCKS = _PageLocks()


class CudaDevice:
    """A CUDA device: scoring on the current stream, copies on a second one, ordered by events alone.

    Lists in an array are page-locked where they are (`cudaHostRegister`) and copied by the device itself.
    Lists in a memory-mapped file pass through two page-locked buffers, filled in turn.
    """

    def __init__(self, where: str = "cuda") -> None:
        self.where = torch.device(where)
        self.batched = True
        self._copies = torch.cuda.Stream(self.where)
        self._computed = torch.cuda.Event()
        self._computed.record(torch.cuda.current_stream(self.where))
        self._copy_marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._score_marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._began: torch.cuda.Event | None = None
        self._host_ND: torch.Tensor | None = None
        self._vectors_ND = np.empty((0, 0), dtype=np.float32)
        self._staging: list[tuple[torch.Tensor, torch.cuda.Event]] = []
        self._turn = 0

    def attach(self, vectors_ND: np.ndarray) -> None:
        """Page-lock an array, or make staging buffers for a memory map.

        Raises:
            RuntimeError: The system refuses to page-lock the array.
        """
        self._vectors_ND = vectors_ND
        if not isinstance(vectors_ND, np.memmap):
            host_ND = torch.from_numpy(vectors_ND)
            _PAGE_LOCKS.take(host_ND)
            self._host_ND = host_ND
            return
        row_bytes = vectors_ND.shape[1] * vectors_ND.itemsize
        shape = (max(1, _STAGING_BYTES // row_bytes), vectors_ND.shape[1])
        dtype = torch.from_numpy(np.empty(0, dtype=vectors_ND.dtype)).dtype
        self._staging = [
            (torch.empty(shape, dtype=dtype, pin_memory=True), torch.cuda.Event()) for _ in range(2)
        ]

    def copy_in(self, runs: list[Run], slab_SRD: torch.Tensor) -> torch.cuda.Event:
        """Queue a copy on the copy stream, after all scoring marked as computed."""
        slab_XD = slab_SRD.view(-1, slab_SRD.shape[-1])
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._copies.wait_event(self._computed)
        with torch.cuda.stream(self._copies):
            began.record(self._copies)
            for run in runs:
                if self._host_ND is not None:
                    source = self._host_ND[run.row : run.row + run.num_rows]
                    slab_XD[run.slot_row : run.slot_row + run.num_rows].copy_(source, non_blocking=True)
                else:
                    self._copy_staged(run, slab_XD)
            ended.record(self._copies)
        self._copy_marks.append((began, ended))
        return ended

    def _copy_staged(self, run: Run, slab_XD: torch.Tensor) -> None:
        done = 0
        while done < run.num_rows:
            buffer, free = self._staging[self._turn]
            self._turn = 1 - self._turn
            free.synchronize()
            rows = min(run.num_rows - done, len(buffer))
            row = run.row + done
            np.copyto(buffer.numpy()[:rows], self._vectors_ND[row : row + rows])
            place = run.slot_row + done
            slab_XD[place : place + rows].copy_(buffer[:rows], non_blocking=True)
            free.record(self._copies)
            done += rows

    def wait(self, ticket: torch.cuda.Event) -> None:
        """Make the scoring stream wait for the copy; the host goes on."""
        torch.cuda.current_stream(self.where).wait_event(ticket)

    def scoring(self) -> None:
        """Mark the start of scoring on its stream."""
        self._began = torch.cuda.Event(enable_timing=True)
        self._began.record(torch.cuda.current_stream(self.where))

    def computed(self) -> None:
        """Mark the end of scoring on its stream."""
        ended = torch.cuda.Event(enable_timing=True)
        ended.record(torch.cuda.current_stream(self.where))
        self._computed = ended
        if self._began is not None:
            self._score_marks.append((self._began, ended))

    def seconds(self) -> tuple[float, float]:
        """Return the seconds between the marks of both streams."""
        torch.cuda.synchronize(self.where)
        spent = tuple(
            sum(began.elapsed_time(ended) for began, ended in marks) / 1000
            for marks in (self._copy_marks, self._score_marks)
        )
        self._copy_marks, self._score_marks = [], []
        return spent[0], spent[1]

    def close(self) -> None:
        """Wait for the device, then unlock the array."""
        torch.cuda.synchronize(self.where)
        if self._host_ND is not None:
            _PAGE_LOCKS.release(self._host_ND)
            self._host_ND = None
        self._staging = []


def device_named(name: str) -> Device:
    """Return the device of a torch name: `cpu` is the simulated one.

    Raises:
        ValueError: The name is neither `cpu` nor a CUDA device there is.
    """
    if name == "cpu":
        return SimulatedDevice()
    if name.split(":")[0] != "cuda" or not torch.cuda.is_available():
        raise ValueError(f"no device {name!r} here; use cpu, or cuda where torch finds a CUDA device")
    return CudaDevice(name)
