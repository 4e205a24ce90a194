"""A complete run leaves a candidate that retrieval and transformers load as it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval import RetrievalConfig, SentenceTransformerEmbedder
from serving.prompt import prompt_hash
from training.candidate import load_candidate
from training.checkpoints.run_checkpoints import RunCheckpoints
from training.errors import CheckpointError, ConfigError
from training.index.schedule import RefreshConfig
from training.joint.config import (
    EncoderConfig,
    JointConfig,
    LoraConfig,
    OptimConfig,
    ReaderConfig,
    SearchConfig,
)
from training.joint.parallel import Ranks
from training.joint.run import build_model, candidate_folder, run_fingerprint, run_joint
from training.joint.trainer import load_weights
from training.types import TrainingSet

pytestmark = pytest.mark.usefixtures("process_group")


def _config(encoder: Path, reader: Path, lora: LoraConfig | None) -> JointConfig:
    return JointConfig(
        encoder=EncoderConfig(model=str(encoder), max_passage_tokens=64, lora=lora),
        reader=ReaderConfig(model=str(reader), lora=lora),
        search=SearchConfig(k=2, rerank=1),
        refresh=RefreshConfig(mode="blocking", interval_steps=2, delay_steps=0),
        optim=OptimConfig(steps=3, batch_questions=4, encoder_lr=1e-2, reader_lr=1e-2, warmup_steps=0),
    )


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["full", "lora"])
async def test_candidate_is_loaded_without_conversion(
    tiny_encoder: Path, tiny_reader: Path, lookup_set: TrainingSet, tmp_path: Path, lora: LoraConfig | None
):
    config = _config(tiny_encoder, tiny_reader, lora)
    run_joint(config, lookup_set, tmp_path, held_out=lookup_set)
    candidate = load_candidate(candidate_folder(tmp_path))
    assert candidate.prompt_hash == prompt_hash()
    assert {"before/recall@5", "after/recall@5", "after/em"} <= set(candidate.metrics)
    trained = build_model(config, lookup_set, Ranks())
    load_weights(
        trained, RunCheckpoints(tmp_path / "checkpoints", fingerprint=run_fingerprint(config, lookup_set))
    )
    trained.eval()
    texts = [passage.full_text for passage in lookup_set.passages]
    wanted_ND = trained.encoder.embed(texts, "passage").detach().numpy()

    settings = RetrievalConfig(embedder=str(candidate.encoder), embed_backend="torch", chunk_tokens=60)
    embedder = SentenceTransformerEmbedder(settings)
    try:
        assert (await embedder.info()).model_hash == candidate.embedder_hash
        assert np.allclose(await embedder.embed_passages(texts), wanted_ND, atol=1e-5)
    finally:
        await embedder.aclose()

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert candidate.reader == ("reader" if lora is None else "adapter")
    folder = candidate.folder / str(candidate.reader)
    if lora is None:
        served = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        base = AutoModelForCausalLM.from_pretrained(tiny_reader, dtype=torch.float32)
        served = PeftModel.from_pretrained(base, folder)
    assert trained.reader is not None
    ids = torch.tensor(
        [trained.reader.rows.row(lookup_set.questions[0], lookup_set.passages[:2], 1).prompt_ids]
    )
    with torch.no_grad():
        assert torch.allclose(served(ids).logits, trained.reader.model(ids).logits, atol=1e-5)


def test_candidate_of_the_same_run_is_the_same_and_damage_is_seen(
    tiny_encoder: Path, tiny_reader: Path, lookup_set: TrainingSet, tmp_path: Path
):
    config = _config(tiny_encoder, tiny_reader, None)
    run_joint(config, lookup_set, tmp_path)
    first = load_candidate(candidate_folder(tmp_path))
    run_joint(config, lookup_set, tmp_path)  # Nothing is left to do; the candidate is written anew.
    assert load_candidate(candidate_folder(tmp_path)) == first
    weights = first.encoder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"encoder/model\.safetensors"):
        load_candidate(first.folder)
    (first.folder / "MANIFEST.json").write_text(json.dumps({"files": {}}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_candidate(first.folder)
    with pytest.raises(ConfigError, match="finish the run first"):
        load_candidate(tmp_path / "elsewhere")


def test_stopped_run_leaves_no_candidate(
    tiny_encoder: Path, tiny_reader: Path, lookup_set: TrainingSet, tmp_path: Path
):
    from training.joint.trainer import Watch

    config = _config(tiny_encoder, tiny_reader, None)
    run_joint(config, lookup_set, tmp_path, watch=Watch(should_stop=lambda: True))
    assert not candidate_folder(tmp_path).exists()
