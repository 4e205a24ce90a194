"""Watches whether blended answers are still those of a full prefill, and ends blending when they are not."""

from __future__ import annotations

import math
import random
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

AGREEMENT_TOKENS = 32
"""Tokens of an answer that are compared one by one."""
_CITATION = re.compile(r"\[(\d{1,3})\]")


@dataclass(frozen=True, slots=True)
class GateConfig:
    """How often blended answers are checked and what they must reach."""

    check_share: float = 0.02
    """Share of blended answers that are generated again, exactly and blended, while the engine is idle; 0 to
    1. The first `window` are all checked, unless it is 0."""
    window: int = 32
    """Checks that are averaged, 1 or more; nothing is decided on fewer."""
    max_kl: float = 0.1
    """Largest mean divergence of the first token's distribution, in nats, more than 0."""
    min_agreement: float = 0.8
    """Smallest mean share of the first 32 greedy tokens that are the same, 0 to 1."""
    min_citation_overlap: float = 0.8
    """Smallest mean overlap of the passages that both answers cite, 0 to 1."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.check_share <= 1.0:
            raise ValueError(f"check_share must be in [0, 1], got {self.check_share}")
        if self.window < 1:
            raise ValueError(f"window must be >= 1, got {self.window}")
        if self.max_kl <= 0:
            raise ValueError(f"max_kl must be > 0, got {self.max_kl}")
        if not 0.0 <= self.min_agreement <= 1.0:
            raise ValueError(f"min_agreement must be in [0, 1], got {self.min_agreement}")
        if not 0.0 <= self.min_citation_overlap <= 1.0:
            raise ValueError(f"min_citation_overlap must be in [0, 1], got {self.min_citation_overlap}")


@dataclass(frozen=True, slots=True)
class CheckedAnswer:
    """A greedy answer as it is compared."""

    token_ids: Sequence[int]
    """Its first tokens, `AGREEMENT_TOKENS` of them count."""
    first_logprobs: Mapping[int, float]
    """Log-probabilities of the likeliest first tokens by id."""
    text: str = ""
    """All that was generated."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One blended answer beside the exact one."""

    kl: float
    """Divergence of the blended first token's distribution from the exact one, in nats."""
    agreement: float
    """Share of the exact answer's tokens that the blended one begins with."""
    citation_overlap: float = 1.0
    """Passages cited by both over those cited by either; 1 where neither cites any."""


def compare(exact: CheckedAnswer, blended: CheckedAnswer) -> Comparison:
    """Return how far a blended answer is from the exact one to the same prompt."""
    return Comparison(
        kl_divergence(exact.first_logprobs, blended.first_logprobs),
        agreement(exact.token_ids[:AGREEMENT_TOKENS], blended.token_ids[:AGREEMENT_TOKENS]),
        citation_overlap(exact.text, blended.text),
    )


def citation_overlap(exact: str, blended: str) -> float:
    """Return how many of the passages that two answers cite as [n] are cited by both (Jaccard index)."""
    one, other = (set(_CITATION.findall(text)) for text in (exact, blended))
    return len(one & other) / len(one | other) if one | other else 1.0


def kl_divergence(exact: Mapping[int, float], blended: Mapping[int, float]) -> float:
    """Return KL(exact || blended) in nats over the tokens known to both, everything else taken as one.

    Never more than the divergence of the whole distributions, since outcomes are only put together.

    Args:
        exact: Log-probabilities by token.
        blended: Of the same kind.
    """
    known = exact.keys() & blended.keys()
    kl = sum(math.exp(exact[token]) * (exact[token] - blended[token]) for token in known)
    rest_exact = 1.0 - sum(math.exp(exact[token]) for token in known)
    rest_blended = 1.0 - sum(math.exp(blended[token]) for token in known)
    if rest_exact > 1e-9:
        kl += rest_exact * math.log(rest_exact / max(rest_blended, 1e-9))
    return max(kl, 0.0)


def agreement(exact: Sequence[int], blended: Sequence[int]) -> float:
    """Return the share of the exact tokens before the first that differs; 1 where there are none."""
    same = 0
    for one, other in zip(exact, blended, strict=False):
        if one != other:
            break
        same += 1
    return same / len(exact) if exact else 1.0


class QualityGate:
    """Decides which blended answers are checked, and whether there are to be any more.

    Args:
        config: What must be reached.
        luck: Draws the answers to check.
    """

    def __init__(self, config: GateConfig, luck: random.Random | None = None) -> None:
        self._config = config
        self._luck = luck or random.Random()
        self._recent: deque[Comparison] = deque(maxlen=config.window)
        self.num_checks = 0
        """Comparisons so far."""
        self.closed_reason: str | None = None
        """Why blending was turned off, or None while it goes on."""

    @property
    def mean_kl(self) -> float:
        """Return the mean divergence of the last checks, 0 before the first."""
        return _mean([one.kl for one in self._recent])

    @property
    def mean_agreement(self) -> float:
        """Return the mean agreement of the last checks, 1 before the first."""
        return _mean([one.agreement for one in self._recent]) if self._recent else 1.0

    @property
    def mean_citation_overlap(self) -> float:
        """Return the mean overlap of citations in the last checks, 1 before the first."""
        return _mean([one.citation_overlap for one in self._recent]) if self._recent else 1.0

    def wants_check(self) -> bool:
        """Return whether the next blended answer is to be checked."""
        if self.closed_reason is not None or not self._config.check_share:
            return False
        return len(self._recent) < self._config.window or self._luck.random() < self._config.check_share

    def record(self, comparison: Comparison) -> None:
        """Take a comparison in, and close where the last ones fall short."""
        self._recent.append(comparison)
        self.num_checks += 1
        if len(self._recent) < self._config.window or self.closed_reason is not None:
            return
        config = self._config
        if (
            self.mean_kl > config.max_kl
            or self.mean_agreement < config.min_agreement
            or self.mean_citation_overlap < config.min_citation_overlap
        ):
            self.closed_reason = (
                f"blending was turned off: over the last {config.window} answers checked, the first token's "
                f"distribution diverged by {self.mean_kl:.3f} nats (limit {config.max_kl}), "
                f"{self.mean_agreement:.0%} of greedy tokens agreed (limit {config.min_agreement:.0%}) and "
                f"{self.mean_citation_overlap:.0%} of citations (limit {config.min_citation_overlap:.0%}); "
                "repair more (reuse.first_k, reuse.repair_share), or keep reuse.mode exact for this model"
            )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
