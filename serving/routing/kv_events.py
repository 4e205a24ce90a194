"""Listens to what vLLM says about its prefix cache.

vLLM publishes events over ZeroMQ, whether the engine runs in this process or in another of this machine; a
socket in the file system needs no port. Nothing is lost between the two ends of such a socket, and were it,
the numbers of the messages would tell: then nothing is known about the cache until it is emptied.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from pathlib import Path

from serving.routing.block_mirror import BlockHash, CacheEvent, Cleared, Removed, Stored

logger = logging.getLogger(__name__)

POLL_MS = 200
"""How often the thread looks whether it is to end."""
MAX_EVENTS = 100_000
"""Messages that wait at either end, one for a step of the engine, and events that wait to be taken."""


class KVEvents:
    """Collects what one engine publishes, on a thread of its own.

    The socket is made before the engine is, so that the first event is heard.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="graft-kv-")
        self.endpoint = f"ipc://{Path(self._folder.name) / 'events'}"
        """Where the engine is to publish."""
        self._lock = threading.Lock()
        self._events: list[CacheEvent] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="graft-kv-events", daemon=True)
        self._thread.start()

    def take(self) -> list[CacheEvent]:
        """Return what was published since the last call, in order."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def _keep(self, events: list[CacheEvent]) -> None:
        with self._lock:
            self._events += events
            if len(self._events) > MAX_EVENTS:  # Nobody asks: what is known then is not worth the memory.
                self._events = [Cleared()]

    def close(self) -> None:
        """End the thread and remove the socket; safe to call twice."""
        self._ending.set()
        self._thread.join()
        self._folder.cleanup()

    def _listen(self) -> None:
        import msgspec
        import zmq

        socket = zmq.Context.instance().socket(zmq.SUB)
        try:
            socket.set_hwm(MAX_EVENTS)
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            socket.setsockopt(zmq.RECONNECT_IVL, POLL_MS)
            socket.connect(self.endpoint)
            decoder, expected = None, 0
            while not self._ending.is_set():
                if not socket.poll(POLL_MS):
                    continue
                _, number, payload = socket.recv_multipart()
                if decoder is None:  # The engine lives, so its modules are loaded.
                    from vllm.distributed.kv_events import KVEventBatch

                    decoder = msgspec.msgpack.Decoder(KVEventBatch)
                events = [event for event in map(_ours, decoder.decode(payload).events) if event is not None]
                if int.from_bytes(number, "big") != expected:
                    logger.warning("events of the prefix cache were lost: it counts as empty")
                    events.insert(0, Cleared())
                expected = int.from_bytes(number, "big") + 1
                self._keep(events)
        finally:
            socket.close(linger=0)


def _ours(event: object) -> CacheEvent | None:
    """Return an event of the device's cache as a value of ours, or None for one of no use here."""
    from vllm.distributed.kv_events import MEDIUM_GPU, AllBlocksCleared, BlockRemoved, BlockStored

    if isinstance(event, AllBlocksCleared):
        return Cleared()
    if not isinstance(event, BlockStored | BlockRemoved) or event.medium not in (None, MEDIUM_GPU):
        return None
    hashes: tuple[BlockHash, ...] = tuple(event.block_hashes)
    if isinstance(event, BlockRemoved):
        return Removed(hashes)
    apart = tuple(event.extra_keys[0] or ()) if event.extra_keys else ()
    return Stored(hashes, event.parent_block_hash, tuple(event.token_ids), apart)
