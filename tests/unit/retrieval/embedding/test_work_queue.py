"""Queries go before passages; what is cancelled is not computed."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from retrieval.embedding.work_queue import Priority, WorkQueue


def test_a_query_overtakes_waiting_passages() -> None:
    queue, release, done = WorkQueue(1), threading.Event(), []
    first = queue.submit(Priority.PASSAGE, release.wait, 10)
    waiting = [queue.submit(Priority.PASSAGE, done.append, number) for number in (1, 2)]
    query = queue.submit(Priority.QUERY, done.append, "query")
    release.set()
    for future in (first, query, *waiting):
        future.result(10)
    assert done == ["query", 1, 2]
    queue.close()


def test_threads_compute_at_once() -> None:
    queue, both = WorkQueue(2), threading.Barrier(2, timeout=10)
    futures = [queue.submit(Priority.PASSAGE, both.wait) for _ in range(2)]
    assert sorted(future.result(10) for future in futures) == [0, 1]
    queue.close()


def test_cancelled_work_is_not_done() -> None:
    queue, release, done = WorkQueue(1), threading.Event(), []
    queue.submit(Priority.PASSAGE, release.wait, 10)
    cancelled = queue.submit(Priority.PASSAGE, done.append, "cancelled")
    kept = queue.submit(Priority.PASSAGE, done.append, "kept")
    assert cancelled.cancel()
    release.set()
    kept.result(10)
    assert done == ["kept"]
    queue.close()


def test_an_error_reaches_who_waits_and_the_thread_goes_on() -> None:
    queue = WorkQueue(1)
    with pytest.raises(ZeroDivisionError):
        queue.submit(Priority.QUERY, lambda: 1 // 0).result(10)
    assert queue.submit(Priority.QUERY, lambda: 7).result(10) == 7
    queue.close()


def test_closing_cancels_what_waits_and_refuses_more() -> None:
    queue, release, started = WorkQueue(1), threading.Event(), threading.Event()

    def run() -> str:
        started.set()
        release.wait(10)
        return "ended"

    running = queue.submit(Priority.PASSAGE, run)
    started.wait(10)
    waiting = queue.submit(Priority.PASSAGE, lambda: None)
    threading.Timer(0.05, release.set).start()
    queue.close()
    assert running.result(0) == "ended"
    with pytest.raises(CancelledError):
        waiting.result(0)
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit(Priority.QUERY, lambda: None)
