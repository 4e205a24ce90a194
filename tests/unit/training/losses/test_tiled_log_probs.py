from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from training.losses.tiled_log_probs import NO_LABEL, answer_log_probs, label_log_probs

ONE_ROW = 1
"""Bytes of a tile that make it as small as can be: one token."""


def drawn(dtype: torch.dtype, *, tokens: int = 13, dim: int = 7, vocab: int = 29):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, dim, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocab, dim, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(vocab, (tokens,), generator=generator)
    upstream = torch.randn(tokens, generator=generator, dtype=torch.float64)
    return hidden, weight, labels, upstream


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    wide = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    logits = hidden.to(wide) @ weight.to(wide).T
    return torch.log_softmax(logits, dim=-1).gather(1, labels[:, None])[:, 0]


@pytest.mark.parametrize("tile_bytes", [ONE_ROW, 5 * 29 * 8, 2**20])
def test_equals_plain_log_softmax_with_its_gradients(tile_bytes: int):
    hidden, weight, labels, upstream = drawn(torch.float64)
    ours, theirs = (
        label_log_probs(hidden, weight, labels, tile_bytes=tile_bytes),
        plain(hidden, weight, labels),
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    for mine, plains in zip(
        torch.autograd.grad(ours @ upstream, (hidden, weight)),
        torch.autograd.grad(theirs @ upstream, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, plains, rtol=0, atol=1e-12)


def test_gradients_agree_with_finite_differences():
    hidden, weight, labels, _ = drawn(torch.float64, tokens=4, dim=3, vocab=5)
    assert torch.autograd.gradcheck(
        lambda h, w: label_log_probs(h, w, labels, tile_bytes=3 * 5 * 8), (hidden, weight)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_math_is_float32_for_any_input_dtype(dtype: torch.dtype):
    hidden, weight, labels, upstream = drawn(dtype)
    ours, theirs = label_log_probs(hidden, weight, labels, tile_bytes=ONE_ROW), plain(hidden, weight, labels)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    grads = torch.autograd.grad(ours @ upstream.float(), (hidden, weight))
    for mine, plains in zip(
        grads, torch.autograd.grad(theirs @ upstream.float(), (hidden, weight)), strict=True
    ):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, plains)


def test_autocast_does_not_lower_the_precision():
    hidden, weight, labels, _ = drawn(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = label_log_probs(hidden, weight, labels)
        ours.sum().backward()
    torch.testing.assert_close(ours, plain(hidden, weight, labels), rtol=0, atol=2e-6)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_logits_never_exceed_a_tile_in_either_direction():
    hidden, weight, labels, _ = drawn(torch.float32, tokens=64, dim=2, vocab=101)
    tile = 4 * 101
    with LargestTensor() as seen:
        label_log_probs(hidden, weight, labels, tile_bytes=tile * 4).sum().backward()
    assert tile <= seen.elements < 2 * tile


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, labels, _ = drawn(torch.float32)
    label_log_probs(hidden, weight.detach(), labels).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_a_label_outside_the_vocabulary_is_refused():
    hidden, weight, labels, _ = drawn(torch.float32)
    labels[3] = 29
    with pytest.raises(ValueError, match=r"spans \d+\.\.29, but the head has 29 tokens"):
        label_log_probs(hidden, weight, labels)
    with pytest.raises(ValueError, match=r"spans -100\.\."):
        label_log_probs(hidden, weight, labels.fill_(NO_LABEL))


def test_answer_tokens_of_all_passages_stand_in_the_same_column():
    """Rows of one question have prompts of other lengths; the t-th answer token goes to column t in each."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 2, 6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    labels = torch.full((2, 2, 6), NO_LABEL)
    labels[0, 0, 1:4] = torch.tensor([5, 6, 7])
    labels[0, 1, 3:6] = torch.tensor([5, 6, 7])
    labels[1, 0, 2] = labels[1, 1, 0] = 8
    found = answer_log_probs(hidden, weight, labels)
    assert found.answer_mask_BKL.tolist() == [[[True] * 3] * 2, [[True, False, False]] * 2]
    log_probs = torch.log_softmax(hidden @ weight.T, dim=-1)
    for (b, k, start), answer in {
        (0, 0, 1): [5, 6, 7],
        (0, 1, 3): [5, 6, 7],
        (1, 0, 2): [8],
        (1, 1, 0): [8],
    }.items():
        wanted = torch.stack([log_probs[b, k, start + t, token] for t, token in enumerate(answer)])
        torch.testing.assert_close(found.token_log_probs_BKL[b, k, : len(answer)], wanted)
    assert found.token_log_probs_BKL[1, :, 1:].eq(0).all()
    (grad,) = torch.autograd.grad(found.token_log_probs_BKL.sum(), hidden)
    assert (grad.abs().sum(dim=-1) > 0).equal(labels != NO_LABEL)


def test_a_batch_without_labels_gives_an_empty_mask_and_no_gradient():
    hidden = torch.zeros(1, 2, 3, 4, requires_grad=True)
    found = answer_log_probs(hidden, torch.zeros(5, 4), torch.full((1, 2, 3), NO_LABEL))
    assert not found.answer_mask_BKL.any()
    found.token_log_probs_BKL.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.eq(0).all()


@pytest.mark.gpu
def test_half_precision_products_on_a_gpu_return_float32():
    hidden, weight, labels, upstream = (t.detach().cuda() for t in drawn(torch.bfloat16, tokens=64, dim=32))
    hidden.requires_grad_(), weight.requires_grad_()
    ours, theirs = label_log_probs(hidden, weight, labels, tile_bytes=ONE_ROW), plain(hidden, weight, labels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for mine, plains in zip(
        torch.autograd.grad(ours @ upstream.float(), (hidden, weight)),
        torch.autograd.grad(theirs @ upstream.float(), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, plains, rtol=2e-2, atol=2e-2)
