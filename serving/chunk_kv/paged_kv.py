"""Reads and writes tokens' KV in an engine's paged cache, in whatever order its kernel keeps the values.

Writing goes through the kernel's own cache update. Reading undoes it: the order is learned once by writing a
block whose values say where they came from, and is checked with random values before it is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_BASE = 128
"""Values are written digit by digit, since half precision counts exactly only that far."""


class UnreadableCache(Exception):
    """The kernel's cache cannot be read back value by value."""


class PagedKV:
    """The KV cache of every attention layer of one engine, by slot (block x block size + offset).

    Args:
        layers: vLLM's attention layers by name, in the order of the model, all of one shape.
        block_size: Tokens of a block.

    Raises:
        UnreadableCache: What is written cannot be found again.
    """

    def __init__(self, layers: Mapping[str, Any], block_size: int) -> None:
        self._layers = list(layers.values())
        self.block_size = block_size
        """Tokens of a block."""
        first = self._layers[0]
        self.num_heads, self.head_dim = first.impl.num_kv_heads, first.impl.head_size
        self.dtype, self.device = first.kv_cache.dtype, first.kv_cache.device
        shapes = {tuple(layer.kv_cache.shape[1:]) for layer in self._layers}
        if len(shapes) != 1:
            raise UnreadableCache(f"layers keep their KV in different shapes: {sorted(shapes)}")
        self._order_key, self._order_value = self._learn(first)
        self._check(first)

    def write(
        self, layer_number: int, slots_T: torch.Tensor, keys_THD: torch.Tensor, values_THD: torch.Tensor
    ) -> None:
        """Put tokens' KV into one layer's cache."""
        layer = self._layers[layer_number]
        self._write(layer, layer.kv_cache, slots_T, keys_THD, values_THD)

    def read(self, layer_number: int, slots_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return copies of tokens' keys and values in one layer's cache, each [T, H, D]."""
        return self._read(self._layers[layer_number].kv_cache, slots_T)

    @property
    def num_layers(self) -> int:
        """Return how many layers have a cache."""
        return len(self._layers)

    def shape_of(self, num_tokens: int) -> tuple[int, int, int, int]:
        """Return the shape of so many tokens' keys in all layers: [L, T, H, D]."""
        return self.num_layers, num_tokens, self.num_heads, self.head_dim

    def _write(
        self, layer: Any, cache: torch.Tensor, slots_T: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        layer.impl.do_kv_cache_update(layer, keys.contiguous(), values.contiguous(), cache, slots_T)

    def _read(self, cache: torch.Tensor, slots_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        blocks, offsets = slots_T // self.block_size, slots_T % self.block_size
        used, where = torch.unique(blocks, return_inverse=True)
        flat = cache[used].reshape(len(used), -1)
        rows = where[:, None, None]
        return flat[rows, self._order_key[offsets]], flat[rows, self._order_value[offsets]]

    def _learn(self, layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where in a block's values each key and each value stands: int64[block_size, H, D], twice."""
        shape = (self.block_size, self.num_heads, self.head_dim)
        number = torch.arange(self.block_size * self.num_heads * self.head_dim, device=self.device)
        scratch = torch.zeros((1, *layer.kv_cache.shape[1:]), dtype=self.dtype, device=self.device)
        slots = torch.arange(self.block_size, device=self.device)
        zeros = torch.zeros(shape, dtype=self.dtype, device=self.device)

        def written(content: torch.Tensor, *, is_key: bool) -> torch.Tensor:
            scratch.zero_()
            content = content.reshape(shape).to(self.dtype)
            pair = (content, zeros) if is_key else (zeros, content)
            self._write(layer, scratch, slots, *pair)
            return scratch.reshape(-1).float().round().long()

        orders = []
        for is_key in (True, False):
            found = torch.zeros(scratch.numel(), dtype=torch.int64, device=self.device)
            digits, scale = number.clone(), 1
            while int(digits.max()) > 0 or scale == 1:
                found += written(digits % _BASE, is_key=is_key) * scale
                digits, scale = digits // _BASE, scale * _BASE
            there = written(torch.ones_like(number), is_key=is_key).nonzero().squeeze(1)
            if len(there) != len(number):
                raise UnreadableCache(f"of {len(number)} values written, {len(there)} were found")
            order = torch.empty_like(number)
            order[found[there]] = there
            orders.append(order.reshape(shape))
        return orders[0], orders[1]

    def _check(self, layer: Any) -> None:
        scratch = torch.zeros((2, *layer.kv_cache.shape[1:]), dtype=self.dtype, device=self.device)
        slots = torch.randperm(2 * self.block_size)[: self.block_size + 1].to(self.device)
        keys, values = torch.randn(2, len(slots), self.num_heads, self.head_dim).to(self.device, self.dtype)
        self._write(layer, scratch, slots, keys, values)
        read_keys, read_values = self._read(scratch, slots)
        if not (torch.equal(read_keys, keys) and torch.equal(read_values, values)):
            raise UnreadableCache("values read from a block are not those written to it")
