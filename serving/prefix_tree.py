"""Which passages prompts began with, so that the next prompt can begin with the same ones.

An engine's prefix cache helps as far as two prompts are equal from the first token on. Retrieved passages
come in another order for every question; put in an order that some earlier prompt began with, more of them
are found there, and the answer is exact for that order (RAGCache, Jin et al. 2024; CacheWeaver, 2025).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

FORGET_AFTER = 10_000
"""Passages seen after which all counts of use are halved: what was asked long ago counts less and less."""


@dataclass(slots=True, eq=False)
class _Node:
    """One passage after those above it."""

    key: Hashable
    num_tokens: int
    parent: _Node | None
    children: dict[Hashable, _Node] = field(default_factory=dict)


class PrefixTree:
    """The orders that prompts had, as far as the engine's cache can still hold them.

    Each path from a root is a prompt that was sent: what stood before its passages, then the passages. When
    all paths together hold more tokens than the cache, the least recently used ends are forgotten; the engine
    evicts by the same rule.

    Args:
        capacity_tokens: Tokens of KV that the engine can hold, 0 or more.
    """

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity_tokens = capacity_tokens
        self._num_tokens = 0
        self._roots: dict[Hashable, _Node] = {}
        self._nodes: OrderedDict[_Node, None] = OrderedDict()
        """Least recently used first; a node always comes before the one above it."""
        self._uses: Counter[Hashable] = Counter()

    @property
    def num_tokens(self) -> int:
        """Return how many tokens the remembered paths hold."""
        return self._num_tokens

    def order(self, head: Hashable, keys: Sequence[Hashable], num_tokens: Sequence[int]) -> list[int]:
        """Return the passages' places in the order that shares most with earlier prompts, and remember it.

        The longest path, in tokens, of passages that are wanted comes first; the others follow by how often
        they were used, so that prompts to come share more, and among equals as they were given.

        Args:
            head: What stands before the passages, and whose it is; paths of different heads share nothing.
            keys: The passages, best first; all different.
            num_tokens: Tokens of each.
        """
        root = self._roots.get(head)
        places = {key: place for place, key in enumerate(keys)}
        path = _longest(root, set(keys)) if root is not None else []
        rest = sorted(places.keys() - set(path), key=lambda key: (-self._uses[key], places[key]))
        order = [places[key] for key in (*path, *rest)]
        self.add(head, [keys[place] for place in order], [num_tokens[place] for place in order])
        return order

    def add(self, head: Hashable, keys: Sequence[Hashable], num_tokens: Sequence[int]) -> None:
        """Remember that a prompt had these passages in this order."""
        node = self._roots.setdefault(head, _Node(head, 0, None))
        path = [node]
        for key, tokens in zip(keys, num_tokens, strict=True):
            if key not in node.children:
                node.children[key] = _Node(key, tokens, node)
                self._num_tokens += tokens
            node = node.children[key]
            path.append(node)
        for node in reversed(path):
            self._nodes[node] = None
            self._nodes.move_to_end(node)
        self._count(keys)
        while self._num_tokens > self._capacity_tokens and self._nodes:
            self._forget(next(iter(self._nodes)))

    def _forget(self, node: _Node) -> None:
        del self._nodes[node]
        self._num_tokens -= node.num_tokens
        if node.parent is None:
            del self._roots[node.key]
        else:
            del node.parent.children[node.key]

    def _count(self, keys: Sequence[Hashable]) -> None:
        self._uses.update(keys)
        if self._uses.total() > FORGET_AFTER:
            self._uses = Counter({key: count // 2 for key, count in self._uses.items() if count > 1})


def _longest(node: _Node, wanted: set[Hashable]) -> list[Hashable]:
    """Return the keys of the path below a node that has most tokens and only what is wanted."""
    best_tokens, best_path = 0, ()
    walk: list[tuple[_Node, int, tuple[Hashable, ...]]] = [(node, 0, ())]
    while walk:
        at, num_tokens, path = walk.pop()
        if num_tokens > best_tokens:
            best_tokens, best_path = num_tokens, path
        # No prompt has a passage twice, so no path has.
        walk += [
            (child, num_tokens + child.num_tokens, (*path, key))
            for key, child in at.children.items()
            if key in wanted
        ]
    return list(best_path)
