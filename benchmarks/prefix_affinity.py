"""The router of `ray.serve.llm`, as the arm to compare with: affinity by the longest prefix of the text.

Ray 2.60's `PrefixCacheAffinityRouter` with its default settings: a prompt goes to the replicas that were sent
the text with the longest beginning in common, if that is a tenth of it or more, else to those that were sent
least text; of several to the one with fewest requests. Nothing is forgotten, load is not looked at otherwise.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.routing.prompt_path import PromptPath
from serving.routing.routed_generator import Replica
from serving.routing.router import Choice, KVRouter
from serving.types import GenerateRequest

MATCH_RATE = 0.1


@dataclass(slots=True)
class _Texts:
    """What a replica was sent, sorted."""

    texts: list[str] = field(default_factory=list)
    num_chars: int = 0
    """Of all texts, beginnings in common counted once."""

    def shared(self, text: str) -> int:
        place = bisect.bisect(self.texts, text)
        return max(
            (_num_shared(text, other) for other in self.texts[max(place - 1, 0) : place + 1]), default=0
        )

    def add(self, text: str) -> None:
        self.num_chars += len(text) - self.shared(text)
        bisect.insort(self.texts, text)


def _num_shared(one: str, other: str) -> int:
    differs = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differs, min(len(one), len(other)))


@dataclass(slots=True)
class PrefixAffinityRouter(KVRouter[Replica]):
    """Chooses as Ray's router does."""

    _sent: dict[Replica, _Texts] = field(default_factory=dict)

    def choose(
        self, request: GenerateRequest, path: PromptPath, replicas: Sequence[Replica]
    ) -> Choice[Replica]:
        """Return where a request goes, and count it there."""
        text = request.prompt.text
        sent = {replica: self._sent.setdefault(replica, _Texts()) for replica in replicas}
        shared = {replica: texts.shared(text) for replica, texts in sent.items()}
        longest = max(shared.values())
        if longest >= MATCH_RATE * len(text):
            good = [replica for replica in replicas if shared[replica] == longest]
        else:
            least = min(texts.num_chars for texts in sent.values())
            good = [replica for replica in replicas if sent[replica].num_chars == least]
        chosen = min(good, key=lambda replica: self.views[replica].num_own)
        sent[chosen].add(text)
        return self._send(chosen, path, 0.0)


@dataclass(slots=True)
class TwoChoicesRouter(KVRouter[Replica]):
    """Takes the less busy of two replicas drawn at random, as Ray Serve does by default."""

    def choose(
        self, request: GenerateRequest, path: PromptPath, replicas: Sequence[Replica]
    ) -> Choice[Replica]:
        """Return where a request goes, and count it there."""
        drawn = self._random.sample(list(replicas), min(2, len(replicas)))
        return self._send(min(drawn, key=lambda replica: self.views[replica].num_own), path, 0.0)
