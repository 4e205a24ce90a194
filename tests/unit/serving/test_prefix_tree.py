"""Orders of passages that share most with earlier prompts, against a search through all of them."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.prefix_tree import FORGET_AFTER, PrefixTree


def ordered(tree: PrefixTree, keys: str, head: str = "", tokens: int = 100) -> str:
    return "".join(keys[place] for place in tree.order(head, keys, [tokens] * len(keys)))


def test_a_first_prompt_keeps_its_order() -> None:
    assert ordered(PrefixTree(10_000), "cab") == "cab"


def test_the_next_prompt_begins_as_the_first_did() -> None:
    tree = PrefixTree(10_000)
    ordered(tree, "abcd")
    assert ordered(tree, "xcba") == "abcx"


def test_the_longest_path_is_taken_not_the_first() -> None:
    tree = PrefixTree(10_000)
    for prompt in ("ax", "bcd"):
        tree.add("", prompt, [100] * len(prompt))
    assert ordered(tree, "adcb") == "bcda"


def test_paths_are_compared_in_tokens() -> None:
    tree = PrefixTree(10_000)
    tree.add("", "ab", [10, 10])
    tree.add("", "c", [500])
    assert tree.order("", "abc", [10, 10, 500])[0] == 2


def test_the_rest_follows_by_use_and_then_as_given() -> None:
    tree = PrefixTree(100_000)
    for prompt in ("zb", "yb", "wb"):
        tree.add("", prompt, [1, 1])
    assert ordered(tree, "cabd") == "bcad"


def test_heads_share_nothing() -> None:
    tree = PrefixTree(10_000)
    ordered(tree, "ab", head="one tenant")
    assert ordered(tree, "ba", head="another") in ("ab", "ba")
    fresh = PrefixTree(10_000)
    fresh.add("one", "ab", [100, 100])
    fresh.add("two", "ba", [100, 100])
    assert fresh.order("two", "ab", [100, 100]) == [1, 0]


def test_what_the_cache_cannot_hold_is_forgotten_least_recently_used_first() -> None:
    tree = PrefixTree(400)
    tree.add("", "ab", [100, 100])
    tree.add("", "cd", [100, 100])
    tree.add("", "ax", [100, 100])  # `b` is the least recently used end
    assert tree.num_tokens == 400
    tree.add("", "y", [100])
    assert tree.num_tokens == 400
    assert ordered(PrefixTree(0), "ba") == "ba"


def test_counts_of_use_fade() -> None:
    tree = PrefixTree(10_000)
    for number in range(FORGET_AFTER + 10):
        tree.add("", [number % 3], [1])
    assert tree._uses.total() <= FORGET_AFTER // 2 + 10


@settings(deadline=None, max_examples=80)
@given(seed=st.integers(0, 100_000), capacity=st.sampled_from([0, 300, 2_000, 10**6]))
def test_the_shared_prefix_is_the_longest_there_is(seed: int, capacity: int) -> None:
    luck = random.Random(seed)
    tokens = {key: luck.randint(1, 200) for key in "abcdefg"}
    tree = PrefixTree(capacity)
    for _ in range(30):
        keys = luck.sample("abcdefg", luck.randint(1, 4))
        paths = remembered(tree)
        assert sum(tokens[path[-1]] for path in paths if path) == tree.num_tokens <= capacity
        order = tree.order("", keys, [tokens[key] for key in keys])
        assert sorted(order) == list(range(len(keys)))
        chosen = [keys[place] for place in order]

        def shared(prompt: tuple[str, ...], paths: set[tuple[str, ...]] = paths) -> int:
            lengths = (n for n in range(len(prompt), 0, -1) if prompt[:n] in paths)
            return sum(tokens[key] for key in prompt[: next(lengths, 0)])

        best = max(map(shared, itertools.permutations(keys)))
        assert shared(tuple(chosen)) == best


def remembered(tree: PrefixTree) -> set[tuple[str, ...]]:
    """Return every path of the tree."""
    found: set[tuple[str, ...]] = set()

    def walk(node: object, path: tuple[str, ...]) -> None:
        found.add(path)
        for key, child in node.children.items():  # type: ignore[attr-defined]
            walk(child, (*path, key))

    for root in tree._roots.values():
        walk(root, ())
    return found
