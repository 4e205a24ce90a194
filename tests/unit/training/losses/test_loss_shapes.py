from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.errors import ConfigError
from training.losses.output import mean_of
from training.losses.shapes import check_positive, check_shapes, widen

ROOT = Path(__file__).resolve().parents[4]
HEAVY = ("torch", "ray", "trl", "faiss", "transformers", "sentence_transformers")


def test_a_letter_has_one_size_in_all_tensors():
    sizes = check_shapes(scores_BK=torch.zeros(2, 3), extra=None, log_probs_BKL=torch.zeros(2, 3, 4))
    assert sizes == {"B": 2, "K": 3, "L": 4}
    with pytest.raises(
        ValueError, match=r"passage_mask_BK has shape \(2, 4\), so K=4, but scores_BK has K=3"
    ):
        check_shapes(scores_BK=torch.zeros(2, 3), passage_mask_BK=torch.zeros(2, 4, dtype=torch.bool))


def test_a_tensor_of_another_rank_is_refused():
    with pytest.raises(ValueError, match=r"scores_BK has shape \(3,\): pass 2 dimensions, B, K"):
        check_shapes(scores_BK=torch.zeros(3))


def test_a_mask_that_is_not_boolean_is_refused():
    with pytest.raises(ValueError, match=r"answer_mask_BL has dtype torch.int64"):
        check_shapes(answer_mask_BL=torch.ones(2, 3, dtype=torch.int64))


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_temperatures_are_finite_and_above_zero(value: float):
    with pytest.raises(ConfigError, match="teacher_temperature"):
        check_positive("teacher_temperature", value)


def test_losses_compute_in_float32_unless_given_float64():
    assert widen(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert widen(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


def test_the_mean_of_nothing_is_zero():
    assert mean_of(torch.zeros(()), torch.tensor(0), None) == 0
    assert mean_of(torch.tensor(6.0), 3, None) == 2
    assert mean_of(torch.tensor(6.0), 3, 12) == 0.5


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, training.losses; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_retriever_losses_need_nothing_but_torch():
    code = f"import sys, training.losses.named_loss; print([m for m in {HEAVY[1:]!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_public_names_are_true():
    module = importlib.import_module("training.losses")
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert dir(module) == sorted(module.__all__)
    with pytest.raises(AttributeError):
        _ = module.no_such_name
