from __future__ import annotations

import torch

from training.pretraining.induction_init import install_induction
from training.pretraining.model import MiniModel, ModelConfig, branch_mask


def continuation_accuracy(*, installed: bool) -> float:
    """How often an untrained model continues the second copy of a random sequence as the first one went."""
    config = ModelConfig(vocab_size=2048, num_layers=4, mlp_dim=128)
    model = MiniModel(config, seed=1)
    if installed:
        install_induction(model, torch.Generator().manual_seed(2))
    length = 60
    half = torch.randperm(2048, generator=torch.Generator().manual_seed(3))[:length]
    ids = torch.cat((half, half))[None]
    mask = branch_mask(torch.zeros_like(ids), torch.zeros_like(ids))
    with torch.no_grad():
        logits = model.logits(model(ids, torch.arange(2 * length)[None], mask))[0]
    return float((logits[length:-1].argmax(-1) == ids[0, length + 1 :]).float().mean())


def test_installed_circuit_continues_a_repeated_sequence():
    assert continuation_accuracy(installed=True) > 0.9


def test_without_it_an_untrained_model_does_not():
    assert continuation_accuracy(installed=False) < 0.1
