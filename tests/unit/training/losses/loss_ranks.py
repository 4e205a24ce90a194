"""Work of two ranks that meet over gloo and a file, with timeouts."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.losses.contrastive import GradCache, contrastive_loss
from training.losses.gather import gather_rows
from training.losses.temperature import EntropyControlledTemperature

WIDTH, QUESTIONS, PASSAGES = 6, 8, 3


class Encoder(nn.Module):
    """An encoder with dropout in the form of sentence-transformers."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, WIDTH))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": self.layers(features["input_ids"])}


def encoder(dropout: float = 0.0) -> Encoder:
    torch.manual_seed(0)
    return Encoder(dropout).double()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Questions, passages and ids with a duplicate positive and a padded negative."""
    generator = torch.Generator().manual_seed(7)
    queries = torch.randn(QUESTIONS, 5, generator=generator, dtype=torch.float64)
    passages = torch.randn(QUESTIONS, PASSAGES, 5, generator=generator, dtype=torch.float64)
    ids = torch.arange(QUESTIONS * PASSAGES).view(QUESTIONS, PASSAGES)
    ids[5, 0] = ids[1, 0]
    ids[2, 2] = -1
    return queries, passages, ids


def plain_loss(model: nn.Module, queries: Tensor, passages: Tensor, ids: Tensor | None) -> Tensor:
    embedded = model({"input_ids": torch.cat((queries, passages.flatten(0, 1)))})["sentence_embedding"]
    columns = (embedded[: len(queries)], embedded[len(queries) :].view(*passages.shape[:2], WIDTH))
    return contrastive_loss(*columns, passage_ids_BP=ids).loss


def cached_loss(model: nn.Module, queries: Tensor, passages: Tensor, ids: Tensor | None) -> Tensor:
    def of_embeddings(columns: list[Tensor]) -> Tensor:
        vectors = columns[1].view(*passages.shape[:2], WIDTH)
        return contrastive_loss(columns[0], vectors, passage_ids_BP=ids).loss

    cache = GradCache(model, of_embeddings, mini_batch_rows=3)
    return cache([{"input_ids": queries}, {"input_ids": passages.flatten(0, 1)}])


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def contrastive_on_rank(rank: int, world: int, *, cached: bool) -> tuple[list[Tensor], Tensor]:
    """Return DDP's gradients and the loss of this rank's share of the questions."""
    model = nn.parallel.DistributedDataParallel(encoder())
    share = slice(rank * QUESTIONS // world, (rank + 1) * QUESTIONS // world)
    queries, passages, ids = (values[share] for values in batch())
    loss = (cached_loss if cached else plain_loss)(model, queries, passages, ids)
    loss.backward()
    return gradients(model), loss.detach()


def likelihoods() -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


def temperature_on_rank(rank: int, world: int) -> float:
    share = likelihoods().chunk(world)[rank]
    return EntropyControlledTemperature().update(share)


def gather_on_rank(rank: int, world: int) -> tuple[Tensor, Tensor]:
    rows = torch.full((2, 3), float(rank + 1), requires_grad=True)
    gathered = gather_rows(rows)
    (gathered * torch.arange(1.0, 2 * world + 1)[:, None] * (rank + 1)).sum().backward()
    assert rows.grad is not None
    return gathered.detach(), rows.grad


def run_rank(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Join the group, compute everything that the tests compare, leave, and write down what was found."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=200),
    )
    try:
        found = {
            "gather": gather_on_rank(rank, world),
            "plain": contrastive_on_rank(rank, world, cached=False),
            "cached": contrastive_on_rank(rank, world, cached=True),
            "temperature": temperature_on_rank(rank, world),
        }
        torch.save(found, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
    return found


def on_two_ranks(folder: Path) -> list[dict[str, Any]]:
    """Return what this process as rank 0 and a spawned one as rank 1 computed.

    All in one go, since importing the libraries again is what takes the time.
    """
    other = multiprocessing.get_context("spawn").Process(target=run_rank, args=(1, 2, folder), daemon=True)
    other.start()
    try:
        found = run_rank(0, 2, folder)
        other.join(60)
        assert other.exitcode == 0, "rank 1 did not end well"
    finally:
        other.kill()
    return [found, torch.load(folder / "1.pt")]
