"""What a joint run gives to the platform: a folder that holds everything a release needs, or does not exist.

    candidate/
      MANIFEST.json       written last: what it was made of and the hash of every file
      encoder/            sentence-transformers model, for `retrieval.embedder`
      passage_encoder/    only where the passage side has weights of its own
      adapter/            LoRA adapter of the reader (PEFT files, which vLLM loads); or
      reader/             the whole reader (Hugging Face files)
      evaluation.json     held-out questions before and after, question by question

Nothing is converted to be served. The index version is made by the platform from `encoder/`, beside the one
that answers, since only the platform knows what its library holds by then.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from retrieval.model_files import weights_hash
from serving.prompt import prompt_hash
from serving.weights import tokenizer_hash
from training.errors import CheckpointError, ConfigError
from training.joint.config import JointConfig
from training.joint.evaluate import EvaluationReport
from training.joint.joint_model import JointModel
from training.toml_config import fingerprint

MANIFEST = "MANIFEST.json"
EVALUATION = "evaluation.json"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Candidate:
    """A complete candidate on disk."""

    folder: Path
    """Where it is."""
    candidate_id: str
    """`c-` and 12 hex digits of a hash over its content: equal content has an equal id."""
    embedder_hash: str
    """Of the weights in `encoder/`."""
    reader: str | None
    """`adapter` or `reader`; None where no reader was trained."""
    prompt_hash: str
    """Of the prompts it was trained on; a platform with other prompts has to refuse it."""
    tokenizer_hash: str | None
    """Of the reader's tokenizer; None where no reader was trained."""
    data_fingerprint: str
    """Of the training set."""
    config_fingerprint: str
    """Of the configuration."""
    metrics: dict[str, float]
    """Held-out means after the run, `before/` and `after/`."""

    @property
    def encoder(self) -> Path:
        """Return the folder to give to `retrieval.embedder`."""
        return self.folder / "encoder"


def write_candidate(
    folder: Path,
    model: JointModel,
    config: JointConfig,
    *,
    reader_weights: dict[str, Tensor],
    data_fingerprint: str,
    steps: int,
    before: EvaluationReport | None,
    after: EvaluationReport | None,
) -> Candidate:
    """Write a candidate beside the run and return it; a crash leaves none or the whole of it.

    Args:
        folder: Where it goes; replaced when the same run wrote it before.
        model: Both towers after the last step.
        config: Of the run.
        reader_weights: `ReaderTower.full_weights`; empty without a trained reader.
        data_fingerprint: Of the training set.
        steps: Optimizer steps done.
        before: Held-out questions before the first step.
        after: The same after the last one.

    Raises:
        OSError: The disk is full; nothing is left.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        model.encoder.save(partial / "encoder", "query")
        if model.encoder.passages is not None:
            model.encoder.save(partial / "passage_encoder", "passage")
        reader = None
        if model.reader is not None and not config.reader.frozen:
            reader = "reader" if config.reader.lora is None else "adapter"
            model.reader.save(partial / reader, reader_weights)
        means = {
            f"{when}/{name}": value
            for when, report in (("before", before), ("after", after))
            if report is not None
            for name, value in report.means().items()
        }
        evaluation = {
            when: None if report is None else [dataclasses.asdict(one) for one in report.judged]
            for when, report in (("before", before), ("after", after))
        }
        (partial / EVALUATION).write_text(json.dumps(evaluation), encoding="utf-8")
        manifest: dict[str, Any] = {
            "embedder_hash": weights_hash(partial / "encoder"),
            "reader": reader,
            "base_reader": config.reader.model if reader == "adapter" else None,
            "prompt_hash": prompt_hash(),
            "tokenizer_hash": None if reader is None else tokenizer_hash(partial / reader),
            "data_fingerprint": data_fingerprint,
            "config_fingerprint": fingerprint(config),
            "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
            "steps": steps,
            "metrics": means,
            "files": {
                path.relative_to(partial).as_posix(): _hash(path)
                for path in sorted(partial.rglob("*"))
                if path.is_file()
            },
        }
        content = {name: manifest[name] for name in ("files", "prompt_hash", "data_fingerprint", "config")}
        manifest["candidate_id"] = "c-" + hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
        with (partial / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return load_candidate(folder)


def load_candidate(folder: Path) -> Candidate:
    """Return a candidate whose files are all as they were written.

    Raises:
        CheckpointError: It is incomplete or damaged.
        ConfigError: There is none.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise ConfigError(f"'{folder}' holds no candidate ({MANIFEST} is missing); finish the run first")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for name, wanted in manifest["files"].items():
            if not (folder / name).exists() or _hash(folder / name) != wanted:
                raise CheckpointError(f"candidate '{folder}': '{name}' is missing or not what was written")
        return Candidate(
            folder=folder,
            candidate_id=manifest["candidate_id"],
            embedder_hash=manifest["embedder_hash"],
            reader=manifest["reader"],
            prompt_hash=manifest["prompt_hash"],
            tokenizer_hash=manifest["tokenizer_hash"],
            data_fingerprint=manifest["data_fingerprint"],
            config_fingerprint=manifest["config_fingerprint"],
            metrics=manifest["metrics"],
        )
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"candidate '{folder}': its manifest cannot be read ({error})") from error


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
