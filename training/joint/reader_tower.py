"""The language model under training: likelihoods of answers, and answers.

Shapes: N reader rows, L answer tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from retrieval.model_files import model_folder
from serving.errors import ModelUnusable
from serving.tokenizer import ModelTokenizer
from training.errors import ConfigError
from training.joint.config import ReaderConfig
from training.joint.dropout import forbid_dropout
from training.joint.lora import add_lora
from training.joint.reader_rows import ReaderRow, RowMaker, batch_rows
from training.losses import label_log_probs


@dataclass(frozen=True, slots=True)
class AnswerLikelihoods:
    """How likely the reader found each token of each answer."""

    token_log_probs_NL: Tensor
    """float32[N, L]; 0 past the end of an answer."""
    taught_NL: Tensor
    """bool[N, L]: tokens the reader is taught, citation and end included."""
    judged_NL: Tensor
    """bool[N, L]: tokens by which a passage is judged."""
    fill: float
    """Share of the computed positions that held a token."""


class ReaderTower(nn.Module):
    """A causal language model behind the prompts that are served."""

    def __init__(self, config: ReaderConfig, device: torch.device) -> None:
        """Load the model.

        Raises:
            ConfigError: The model cannot be found or its tokenizer is not one that Graft serves.
        """
        super().__init__()
        self.config = config
        try:
            folder = model_folder(config.model)
            self.tokenizer = ModelTokenizer(folder / "tokenizer.json")
        except (FileNotFoundError, ModelUnusable) as error:
            raise ConfigError(f"reader.model: {error}") from error
        self._folder = folder
        self._device = device  # Offloaded weights are elsewhere.
        disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        forbid_dropout(model)
        if config.frozen:
            model.requires_grad_(False)
        elif config.lora is not None:
            add_lora(model, config.lora)
        if config.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model: Any = nn.Module.to(
            model, device
        )  # transformers types what its own methods take too narrowly.
        self.rows = RowMaker(self.tokenizer, config.max_passage_tokens, config.max_answer_tokens)
        """Makes the rows this model reads."""
        self.max_tokens = int(model.config.max_position_embeddings)
        """Longest row it reads."""

    def likelihoods(self, rows: Sequence[ReaderRow], *, with_gradients: bool = True) -> AnswerLikelihoods:
        """Return the likelihoods of the rows' answers.

        Args:
            rows: At least one.
            with_gradients: Whether the reader is trained by what comes of them.

        Raises:
            ConfigError: A row is longer than the model reads.
        """
        longest = max(row.num_tokens for row in rows)
        if longest > self.max_tokens:
            raise ConfigError(
                f"a prompt of {longest:,} tokens is above the {self.max_tokens:,} that {self.config.model!r} "
                "reads; lower reader.max_passage_tokens or search.k"
            )
        device = self._device
        batch = batch_rows(rows, self.tokenizer.end_ids[1], self.config.row_tokens)
        trained = with_gradients and not self.config.frozen
        with contextlib.nullcontext() if trained else torch.no_grad():
            log_probs_A = self(
                batch.token_ids_RT.to(device),
                batch.positions_RT.to(device),
                batch.mask.to(device),
                (batch.rows.to(device), batch.columns.to(device)),
                batch.labels.to(device),
            )
        shape = (len(rows), int(batch.offsets.max()) + 1)
        places = (batch.owners.to(device), batch.offsets.to(device))
        token_log_probs_NL = torch.zeros(shape, device=device).index_put(places, log_probs_A)
        length_N = torch.tensor([len(row.answer_ids) for row in rows], device=device)
        judged_N = torch.tensor([row.num_judged for row in rows], device=device)
        offsets_L = torch.arange(shape[1], device=device)
        return AnswerLikelihoods(
            token_log_probs_NL,
            offsets_L < length_N[:, None],
            offsets_L < judged_N[:, None],
            batch.fill,
        )

    def forward(
        self,
        token_ids_RT: Tensor,
        positions_RT: Tensor,
        mask: Tensor,
        places_A: tuple[Tensor, Tensor],
        labels_A: Tensor,
    ) -> Tensor:
        """Return float32[num_answer_tokens], the log-probability of each label; see `RowBatch`."""
        hidden_RTD = self.model.get_decoder()(
            input_ids=token_ids_RT, position_ids=positions_RT, attention_mask=mask, use_cache=False
        ).last_hidden_state
        # Logits of prompts would be most of the memory and none of the loss: the head sees answers alone.
        return label_log_probs(
            hidden_RTD[places_A], self.model.get_output_embeddings().weight, labels_A
        ).float()

    @torch.no_grad()
    def answer(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[str]:
        """Return the greedy answers to prompts, as the model wrote them."""
        pad_id = self.tokenizer.end_ids[1]
        longest = max(len(prompt) for prompt in prompts)
        padded = torch.full((len(prompts), longest), pad_id, dtype=torch.int64)
        mask = torch.zeros_like(padded)
        for index, prompt in enumerate(prompts):
            padded[index, longest - len(prompt) :] = torch.tensor(prompt)
            mask[index, longest - len(prompt) :] = 1
        device = self._device
        made = self.model.generate(
            input_ids=padded.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(self.tokenizer.end_ids),
            pad_token_id=pad_id,
        )
        return [self.tokenizer.decode(ids[longest:].tolist()) for ids in made]

    def full_weights(self) -> dict[str, Tensor]:
        """Return the trained weights on the CPU, whole; every rank calls where FSDP2 shares them."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        return cast(dict[str, Tensor], get_model_state_dict(self.model, options=options))

    def save(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write the adapter where there is one, else the whole model, with the tokenizer beside it.

        Args:
            folder: Where to.
            weights: What `full_weights` returned.
        """
        self.model.save_pretrained(str(folder), state_dict=weights)
        AutoTokenizer.from_pretrained(self._folder).save_pretrained(str(folder))
