"""Whether `kill -9` at any moment loses, halves or revives anything, and what a durable write costs.

Arms: `kill9` kills a process at random moments and at chosen ones (inside an upsert, a compaction, a
snapshot, a version switch ...) while it writes one growing and shrinking shard, then opens the shard and
compares all of it with what was acknowledged; now and then a file of a base segment is torn first.
`fsync_floor` times a bare one-row commit of SQLite (WAL, synchronous=FULL) and `fdatasync` in turns with
single upserts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.durability_content import (
    CONFIG,
    FIRST_SPEC,
    LIBRARY,
    TENANT,
    Contents,
    text_of,
    vectors_of,
)
from benchmarks.durability_judge import Verdict, judge, judge_copy, tear, wait_rebuilt
from benchmarks.report import Report
from retrieval.shard.shard import Shard
from retrieval.truth.records import Vectors
from retrieval.truth.store import Store
from retrieval.types import Record, SearchRequest
from retrieval.versions import VersionSpec

_AIMS = ("upsert", "add", "finish", "delete", "compact", "snapshot", "make", "fill", "switch", "drop")
_LONGEST_S = 1.5
_GONE = 40


class Campaign:
    """One shard, killed again and again, and what it must hold."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Start the server that forks the victims."""
        self._folder = folder
        self._choose = random.Random(seed)
        self._seed = seed
        self.contents = Contents()
        self.verdict = Verdict()
        self.killed_in: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.reopen_ms: list[float] = []
        self._gone: list[tuple[str, int]] = []
        self._token = 0
        self._active: set[str] = {FIRST_SPEC.version_id}
        self._dropped: set[str] = set()
        self._copies: dict[str, Contents] = {}
        self._told, write_end = os.pipe()
        os.set_blocking(self._told, False)
        self._server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.durability_victim", str(folder), str(write_end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=(write_end,),
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        os.close(write_end)

    def close(self) -> None:
        """End the server."""
        self._server.communicate()
        os.close(self._told)

    def round(self, number: int) -> None:
        """Kill one victim and judge what it left."""
        pending = self._run_and_kill(number)
        self.counts["kill_points"] += 1
        for name in {"writer", "maintenance"} & pending.keys():
            self.killed_in[str(pending[name]["kind"])] += 1
        if not pending:
            self.killed_in["nothing under way"] += 1
        possible = [self.contents]
        if "writer" in pending:
            possible.append(self.contents.after(pending["writer"]))
        torn = number % 5 == 4 and tear(self._folder / "shard", self._choose)
        started = time.perf_counter()
        shard = Shard(self._folder / "shard", CONFIG)
        try:
            if not shard.store.stored_versions():
                shard.store.configure(FIRST_SPEC)  # Killed before it had opened for the first time.
            dim = shard.store.version().dim
            request = SearchRequest("probe", 10, mode="dense", tenant=TENANT, exact=True)
            shard.candidates(None, [request], vectors_of(["probe"])[:, :dim])
            self.reopen_ms.append((time.perf_counter() - started) * 1000)
            verdict, settled = judge(shard, possible, self._gone, whole=number % 25 == 0)
            if torn:
                self.counts["torn_segments"] += 1
                if not wait_rebuilt(shard):
                    verdict.wrong_answers.append("a torn segment was not rebuilt")
                again, _ = judge(shard, [settled], self._gone, whole=False)
                verdict.add(again)
            self._judge_versions(verdict, shard, pending.get("maintenance"))
        finally:
            shard.close()
        self.counts["happened_unacknowledged"] += settled is not possible[0] and len(possible) > 1
        self._judge_copies(verdict)
        self._note_gone(self.contents, settled)
        self.contents = settled
        self.verdict.add(verdict)

    def _run_and_kill(self, number: int) -> dict[str, dict[str, object]]:
        """Return what each thread of the victim had begun and not acknowledged."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        aim = self._choose.choice((None, None, "open", *_AIMS))
        self._server.stdin.write(f"{self._seed * 1_000_003 + number * 2} {self._token}\n")
        self._server.stdin.flush()
        victim = int(self._server.stdout.readline())
        started = time.monotonic()
        longest_s = {None: 1.0, "open": 0.06}.get(aim, _LONGEST_S)
        die_at = started + (self._choose.uniform(0.0, longest_s) if aim in (None, "open") else longest_s)
        aim_from = started + self._choose.uniform(0.0, 0.9)
        buffer, pending = b"", dict[str, dict[str, object]]()
        while (left := die_at - time.monotonic()) > 0:
            ready, _, _ = select.select([self._told], [], [], left)
            if ready:
                buffer, begun = self._hear(buffer, pending)
                if aim in begun and time.monotonic() >= aim_from:
                    # Long enough to fall anywhere within the operation, and often just after it.
                    die_at = min(die_at, time.monotonic() + self._choose.expovariate(200.0))
                    aim = None
        os.kill(victim, signal.SIGKILL)
        ended = self._server.stdout.readline().split()
        if ended != ["dead", str(-signal.SIGKILL)]:
            self.verdict.wrong_answers.append(f"round {number}: the victim ended by itself ({ended})")
        self._hear(buffer, pending)
        return pending

    def _hear(self, buffer: bytes, pending: dict[str, dict[str, object]]) -> tuple[bytes, list[str]]:
        """Take in what was told; return the unfinished line, and the kinds of operations that began."""
        begun: list[str] = []
        while True:
            try:
                data = os.read(self._told, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                break
            buffer += data
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            told = json.loads(line)
            thread, event = told.pop("thread"), told.pop("event")
            if event == "begin":
                pending[thread] = told
                begun.append(told["kind"])
                if "token" in told:
                    self._token = max(self._token, told["token"] + len(told["names"]))
                elif told["kind"] == "snapshot":
                    told["contents"] = self.contents
            elif event == "wrong":
                self.verdict.wrong_answers.append(told["what"])
            elif event == "done":
                self._acknowledged(pending.pop(thread))
        return buffer, begun

    def _acknowledged(self, done: dict[str, object]) -> None:
        kind = str(done["kind"])
        self.counts[kind] += 1
        if "names" in done:
            self.counts["operations"] += len(done["names"])  # pyright: ignore[reportArgumentType]
            after = self.contents.after(done)
            self._note_gone(self.contents, after, done["names"])  # pyright: ignore[reportArgumentType]
            self.contents = after
        elif kind == "switch":
            self._active = {str(done["version"])}
        elif kind == "drop":
            self._dropped.add(str(done["version"]))
        elif kind == "make":
            self._dropped.discard(str(done["version"]))
        elif kind == "snapshot":
            self._copies[str(done["folder"])] = done["contents"]  # pyright: ignore[reportArgumentType]

    def _note_gone(self, before: Contents, after: Contents, names: list[str] | None = None) -> None:
        for name in names if names is not None else [*before.answering]:
            token = before.answering.get(name)
            if token is not None and after.answering.get(name) != token:
                self._gone.append((name, token))
        self._gone = self._gone[-_GONE:]

    def _judge_versions(self, verdict: Verdict, shard: Shard, pending: dict[str, object] | None) -> None:
        """The version that was switched to answers, and those that were dropped left nothing."""
        kind, wanted = (pending or {}).get("kind"), str((pending or {}).get("version"))
        active = shard.store.version().version_id
        if active not in (self._active | {wanted} if kind == "switch" else self._active):
            verdict.acknowledged_lost.append(f"version {active} answers, not {self._active}")
        self._active = {active}
        here = {version.version_id: version.number for version in shard.store.stored_versions()}
        revived = self._dropped & here.keys() - ({wanted} if kind == "make" else set())
        verdict.deleted_returned += [f"dropped version {one} is back" for one in revived]
        self._dropped -= here.keys()
        folders = [path.name for path in (shard.folder / "segments").glob("*") if path.name.isdigit()]
        stray = set(folders) - {str(number) for number in here.values()}
        verdict.deleted_returned += [f"segments of dropped version {one}" for one in stray]

    def _judge_copies(self, verdict: Verdict) -> None:
        """Judge the last acknowledged snapshot now and then, and every one a kill cut short."""
        copies, acknowledged = self._folder / "copies", dict(self._copies)
        for folder in sorted(copies.iterdir()) if copies.is_dir() else ():
            expected = next(
                (acknowledged[one] for one in acknowledged if folder.name == Path(one).name), None
            )
            if expected is None or self._choose.random() < 0.3:
                self.counts["snapshots_judged"] += 1
                verdict.add(judge_copy(folder, self._folder / "restored", expected))
        shutil.rmtree(copies, ignore_errors=True)
        self._copies.clear()


def kill9(report: Report, folder: Path, kills: int, operations: int, seed: int) -> bool:
    """Report the campaign; return whether nothing was wrong."""
    campaign = Campaign(folder, seed)
    started, number = time.monotonic(), 0
    try:
        while number < kills or campaign.counts["operations"] < operations:
            campaign.round(number)
            number += 1
            for name in ("acknowledged_lost", "half_written", "deleted_returned", "wrong_answers"):
                for what in getattr(campaign.verdict, name)[:3]:
                    print(f"round {number}: {name}: {what}", file=sys.stderr)
            if any((campaign.verdict.acknowledged_lost, campaign.verdict.half_written,
                    campaign.verdict.deleted_returned, campaign.verdict.wrong_answers)):  # fmt: skip
                break  # What comes after a broken shard says nothing.
            if number % 50 == 0:
                print(f"{number} kills, {campaign.counts['operations']:,} records", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped by hand; what was done is reported", file=sys.stderr)
    finally:
        campaign.close()
    verdict, counts = campaign.verdict, campaign.counts
    about = {"seed": seed, "seconds": round(time.monotonic() - started, 1)}
    report.add("kill9", "kill_points", counts["kill_points"], "kills", target=500,
               killed_in=dict(campaign.killed_in.most_common()), **about)  # fmt: skip
    report.add("kill9", "operations", counts["operations"], "records", target=1_000_000,
               calls={kind: counts[kind] for kind in _AIMS},
               unacknowledged_that_happened=counts["happened_unacknowledged"])  # fmt: skip
    for name in ("acknowledged_lost", "half_written", "deleted_returned", "wrong_answers"):
        found = getattr(verdict, name)
        report.add("kill9", name, len(found), "documents", target=0, better="lower", what=found[:5])
    report.add("kill9", "torn_segments", counts["torn_segments"], "segments",
               snapshots_judged=counts["snapshots_judged"])  # fmt: skip
    for share in (50, 99):
        report.add("kill9", f"reopen_p{share}_ms", _ms(campaign.reopen_ms, share), "ms", better="lower",
                   what="open after the kill, to the first exact answer")  # fmt: skip
    return not any((verdict.acknowledged_lost, verdict.half_written, verdict.deleted_returned,
                    verdict.wrong_answers))  # fmt: skip


def fsync_floor(report: Report, folder: Path, rows: int, turns: int) -> None:
    """Time single upserts, bare commits and bare fdatasync in turns on one disk."""
    store = Store(folder / "shard")
    spec = VersionSpec("given", "given-vectors", 384, 180, 0, 2000)
    number = store.configure(spec).number
    random_ND = np.random.default_rng(3).standard_normal((rows, 384)).astype(np.float32)
    texts = [text_of(f"r{row}", row) * 6 for row in range(rows)]
    for start in range(0, rows, 500):
        chosen = range(start, min(start + 500, rows))
        records = [Record(f"r{row}", texts[row], metadata={"year": 1.0}) for row in chosen]
        store.upsert(TENANT, LIBRARY, records, {number: Vectors(random_ND[list(chosen)])})
    bare = sqlite3.connect(folder / "bare.sqlite3", isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        bare.execute(f"PRAGMA {pragma}").fetchall()
    bare.execute("CREATE TABLE rows(id INTEGER PRIMARY KEY, value BLOB)")
    seconds: dict[str, list[float]] = {"upsert": [], "sqlite_commit": [], "fdatasync": []}
    value = random_ND[0].tobytes()
    with (folder / "bare.log").open("wb", buffering=0) as log:
        for row in range(turns):
            record = [Record(f"r{row % rows}", texts[-row % rows], metadata={"year": 2.0})]
            started = time.perf_counter()
            store.upsert(TENANT, LIBRARY, record, {number: Vectors(random_ND[row % rows][None, :])})
            seconds["upsert"].append(time.perf_counter() - started)
            started = time.perf_counter()
            bare.execute("INSERT INTO rows(value) VALUES (?)", (value,))
            seconds["sqlite_commit"].append(time.perf_counter() - started)
            started = time.perf_counter()
            log.write(value)
            os.fdatasync(log.fileno())
            seconds["fdatasync"].append(time.perf_counter() - started)
    bare.close()
    store.close()
    floor = _ms([one * 1000 for one in seconds["sqlite_commit"]], 50)
    for name, values in seconds.items():
        in_ms = [one * 1000 for one in values]
        p50, p99 = _ms(in_ms, 50), _ms(in_ms, 99)
        report.add("fsync_floor", f"{name}_p50_ms", p50, "ms", better="lower", p99_ms=p99,
                   times_bare_commit=round(p50 / floor, 2), turns=turns, rows=rows)  # fmt: skip


def _ms(values: list[float], share: float) -> float:
    return round(float(np.percentile(values, share)), 3)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="unused: all is made here")
    parser.add_argument("--quick", action="store_true", help="40 kills, under 3 minutes")
    parser.add_argument("--kills", type=int, default=500, help="kills, at least")
    parser.add_argument("--operations", type=int, default=1_000_000, help="records written, at least")
    parser.add_argument(
        "--seed", type=int, default=None, help="of an earlier run, to go near its moments again"
    )
    options = parser.parse_args()
    report = Report("durability", quick=options.quick)
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "big")
    with tempfile.TemporaryDirectory() as folder:
        fsync_floor(report, Path(folder), 2_000 if options.quick else 20_000, 400)
    kills, operations = (40, 0) if options.quick else (options.kills, options.operations)
    with tempfile.TemporaryDirectory() as folder:
        whole = kill9(report, Path(folder), kills, operations, seed)
    report.save()
    if not whole:
        parser.exit(1, "the shard broke a promise; see the rows above\n")


if __name__ == "__main__":
    main()
