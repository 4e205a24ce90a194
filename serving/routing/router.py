"""Chooses the replica that will answer soonest: the one with least to compute before the first token."""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from serving.routing.prompt_path import PromptPath
from serving.routing.replica_view import ReplicaView, Sent
from serving.types import GenerateRequest

Replica = TypeVar("Replica", bound=Hashable)

CHARS_PER_TOKEN = 4.0
"""Until answers have told; English text in a vocabulary of a usual size."""
LEARNING_RATE = 0.05
"""Weight of the newest prompt in the moving mean of characters per token."""
MEMORY_SHARE = 0.7
"""What a token of a chunk in memory saves, beside one in the engine's cache: loading and repairs cost."""
DISK_SHARE = 0.5
"""The same of one on disk."""
RUNNING_TOKENS = 64.0
"""What a request that is being answered costs the next prompt, in tokens to compute: steps are shared."""
EQUAL_TOKENS = 64.0
"""Replicas this close to the best are as good: the session's last is taken, or the one with most to reuse."""
MAX_SESSIONS = 100_000
"""Sessions remembered; the least recently used are forgotten."""


@dataclass(frozen=True, slots=True)
class Choice(Generic[Replica]):
    """A replica for a request."""

    replica: Replica
    """Where it goes."""
    number: int
    """Names the request to the router."""
    reused_tokens: float
    """What it will not have to compute there, estimated."""


@dataclass(slots=True)
class KVRouter(Generic[Replica]):
    """Sends requests where most of their KV is and least is to be done; used from one thread at a time."""

    seed: int = 0
    """Of the choice among replicas that are equal."""
    views: dict[Replica, ReplicaView] = field(default_factory=dict)
    """What is known of each replica."""
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _sessions: OrderedDict[str, Replica] = field(default_factory=OrderedDict)
    _chars_per_token: float = CHARS_PER_TOKEN
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def choose(
        self, request: GenerateRequest, path: PromptPath, replicas: Sequence[Replica]
    ) -> Choice[Replica]:
        """Return where a request goes, and count it there until its view is told that it has ended.

        Args:
            request: What is asked.
            path: Its prompt.
            replicas: Those that may get it, one at least.
        """
        num_tokens = path.num_chars / self._chars_per_token
        reused = {replica: self._reused(path, replica) for replica in replicas}
        costs = {
            replica: num_tokens - reused[replica] + self._busy_tokens(replica, num_tokens)
            for replica in replicas
        }
        chosen = self._best(request.session, reused, costs)
        return self._send(chosen, path, reused[chosen])

    def _best(self, session: str, reused: dict[Replica, float], costs: dict[Replica, float]) -> Replica:
        least = min(costs.values())
        good = [replica for replica, cost in costs.items() if cost <= least + EQUAL_TOKENS]
        last = self._sessions.get(session) if session else None
        # A prompt that is being computed is waited for as long as it would take to compute it elsewhere too,
        # but then it is computed once.
        chosen = max(
            good, key=lambda one: (one == last, round(reused[one]), -costs[one], self._random.random())
        )
        if session:
            self._sessions[session] = chosen
            self._sessions.move_to_end(session)
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return chosen

    def _send(self, replica: Replica, path: PromptPath, reused_tokens: float) -> Choice[Replica]:
        """Count a request as sent."""
        number = next(self._numbers)
        chars = itertools.accumulate(step.num_chars for step in path.steps)
        ends = [num_chars / self._chars_per_token for num_chars in chars]
        uncached_tokens = max(path.num_chars / self._chars_per_token - reused_tokens, 0.0)
        self.views[replica].send(number, Sent(path.nodes(), ends, uncached_tokens))
        return Choice(replica, number, reused_tokens)

    def learn(self, num_chars: int, num_tokens: int) -> None:
        """Take in how many tokens a prompt was."""
        if num_tokens:
            newest = num_chars / num_tokens
            self._chars_per_token += LEARNING_RATE * (newest - self._chars_per_token)

    def _reused(self, path: PromptPath, replica: Replica) -> float:
        found = self.views[replica].reusable(path)
        from_store = MEMORY_SHARE * found.memory_chars + DISK_SHARE * found.disk_chars
        return found.device_tokens + from_store / self._chars_per_token

    def _busy_tokens(self, replica: Replica, mean_tokens: float) -> float:
        view = self.views[replica]
        return (
            view.queued_tokens
            + RUNNING_TOKENS * view.num_begun
            # What others sent is as likely to be computed already as not.
            + view.num_others * (mean_tokens + RUNNING_TOKENS) / 2
        )
