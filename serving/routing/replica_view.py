"""What a router knows of one replica: what KV it holds, and what it has to do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from serving.chunk_kv.store_stats import Tier
from serving.routing.kv_report import KVReport, ReplicaState
from serving.routing.prompt_path import PathStep, PromptPath, child

MAX_ORDERS = 1_000
"""Beginnings of a prompt looked at, where passages may change places."""


@dataclass(frozen=True, slots=True)
class Reusable:
    """How much of a prompt a replica need not compute."""

    device_tokens: int = 0
    """Tokens of the prefix in the engine's cache."""
    memory_chars: int = 0
    """Characters of chunks in the chunk store's memory, beyond that prefix."""
    disk_chars: int = 0
    """The same on its disk."""


@dataclass(slots=True)
class Sent:
    """A request that was sent to the replica and has not ended."""

    nodes: list[bytes]
    """What the replica will hold once it is computed."""
    ends: list[float]
    """Tokens down to each, estimated."""
    uncached_tokens: float
    """What it has to compute for it, estimated."""
    has_begun: bool = False
    """Whether its first token has come."""


class ReplicaView:
    """A router's picture of a replica: its last report, and what was sent since."""

    def __init__(self) -> None:
        self.life = ""
        """The report's, to ask for the next one by."""
        self.version = 0
        """The report's."""
        self._prefixes: dict[bytes, int] = {}
        self._chunks: dict[bytes, Tier] = {}
        self._state = ReplicaState()
        self._sent: dict[int, Sent] = {}
        self._ended: dict[int, Sent] = {}
        """Requests that have ended since the last report was asked for."""
        self._expected: Counter[bytes] = Counter()
        self._expected_tokens: dict[bytes, float] = {}
        self._num_sent_at_report = 0

    @property
    def num_own(self) -> int:
        """Return how many requests were sent from here and have not ended."""
        return len(self._sent)

    @property
    def num_begun(self) -> int:
        """Return how many of them are being answered."""
        return sum(sent.has_begun for sent in self._sent.values())

    @property
    def num_others(self) -> int:
        """Return how many requests of other clients it had at the last report."""
        return max(self._state.num_running + self._state.num_waiting - self._num_sent_at_report, 0)

    @property
    def queued_tokens(self) -> float:
        """Return how many tokens it has to compute before it begins with another prompt."""
        return sum(sent.uncached_tokens for sent in self._sent.values() if not sent.has_begun)

    def send(self, number: int, sent: Sent) -> None:
        """Count a request that is sent there."""
        self._sent[number] = sent
        for node, end in zip(sent.nodes, sent.ends, strict=True):
            self._expected[node] += 1
            self._expected_tokens.setdefault(node, end)

    def begun(self, number: int) -> None:
        """Count a request's prompt as computed."""
        if (sent := self._sent.get(number)) is not None:
            sent.has_begun = True

    def end(self, number: int) -> None:
        """Count a request as ended; what it left there is taken for granted until a report tells."""
        if (sent := self._sent.pop(number, None)) is not None:
            self._ended[number] = sent

    @property
    def state(self) -> ReplicaState:
        """Return what else it told at the last report."""
        return self._state

    def asked(self) -> list[int]:
        """Return the requests that the report asked for now will know of, to give back with `take`."""
        return list(self._ended)

    def take(self, report: KVReport, known: list[int]) -> None:
        """Take in a report.

        Args:
            report: What the replica told.
            known: From `asked`, when it was asked for.
        """
        for number in known:
            if (sent := self._ended.pop(number, None)) is not None:
                self._expect_no_more(sent)
        if report.life == self.life and report.version < self.version:
            return  # One asked for earlier that came later.
        if report.is_full:
            self._prefixes, self._chunks = {}, {}
        for node, num_tokens in report.prefixes.items():
            if num_tokens is not None:
                self._prefixes[node] = num_tokens
            else:
                self._prefixes.pop(node, None)
        for name, tier in report.chunks.items():
            if tier is not None:
                self._chunks[name] = tier
            else:
                self._chunks.pop(name, None)
        self.life, self.version, self._state = report.life, report.version, report.state
        self._num_sent_at_report = len(self._sent)

    def reusable(self, path: PromptPath) -> Reusable:
        """Return how much of a prompt the replica has, or will have once it has done what was sent."""
        device_tokens, num_chars = self._prefix(path)
        beyond = 1.0 - min(num_chars / path.chunk_chars, 1.0) if path.chunk_chars else 0.0
        by_tier = Counter(self._chunks.get(name) for name in path.chunks)
        chars_per_chunk = path.chunk_chars / len(path.chunks) if path.chunks else 0.0
        return Reusable(
            device_tokens,
            int(by_tier["memory"] * chars_per_chunk * beyond),
            int(by_tier["disk"] * chars_per_chunk * beyond),
        )

    def _prefix(self, path: PromptPath) -> tuple[int, int]:
        """Return the tokens and the characters of the longest beginning of a prompt that is there."""
        best_tokens, best_chars = 0, 0
        walk: list[tuple[bytes, int, int, frozenset[int]]] = [(path.root, 0, 0, frozenset())]
        movable = [place for place, step in enumerate(path.steps) if step.is_movable]
        for _ in range(MAX_ORDERS):
            if not walk:
                break
            node, place, num_chars, used = walk.pop()
            if place == len(path.steps):
                continue
            step = path.steps[place]
            choices = [other for other in movable if other not in used] if step.is_movable else [place]
            for other in choices:
                taken: PathStep = path.steps[other]
                below = child(node, taken.key)
                tokens = self._tokens(below)
                if tokens is None:
                    continue
                if tokens > best_tokens:
                    best_tokens, best_chars = tokens, num_chars + taken.num_chars
                walk.append((below, place + 1, num_chars + taken.num_chars, used | {other}))
        return best_tokens, best_chars

    def _tokens(self, node: bytes) -> int | None:
        told = self._prefixes.get(node)
        if told is not None:
            return told
        return int(self._expected_tokens[node]) if node in self._expected else None

    def _expect_no_more(self, sent: Sent) -> None:
        for node in sent.nodes:
            self._expected[node] -= 1
            if not self._expected[node]:
                del self._expected[node]
                del self._expected_tokens[node]
