"""What a GPU makes of the two heavy parts of training: a reader's step, and encoding the index anew.

Run: `python -m benchmarks.gpu_training [--quick]`. Needs torch, transformers and sentence-transformers alone.

`matmul`: the largest product in bfloat16, which the others are shares of. `reader_0.6b`, `reader_1.7b`: steps
of `ReaderTower` (packed, compiled, bfloat16, AdamW) at the shapes of Qwen3 with random weights; operations
are those of tokens that are no filling, forward once and backward twice. `encoder_bert_base`: documents of
128 tokens through `SnapshotEncoder`, tokenised beforehand and from text. `--quick` runs tiny shapes where it
is, a CPU too.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, Qwen3Config, Qwen3ForCausalLM

from benchmarks.report import Report
from benchmarks.training_models import READER
from training.joint.config import OptimConfig, ReaderConfig
from training.joint.encoder_tower import SnapshotEncoder
from training.joint.optimizers import TowerOptimizer
from training.joint.reader_rows import ReaderRow
from training.joint.reader_tower import ReaderTower
from training.model_shape import ModelShape
from training.types import TrainingPassage, TrainingQuestion

ROW_TOKENS = 2048
DOCUMENT_TOKENS = 128
MFU_TARGET = 0.4
DOCUMENTS_TARGET = 10_000.0
_QWEN3 = {
    "reader_0.6b": {"hidden_size": 1024, "intermediate_size": 3072},
    "reader_1.7b": {"hidden_size": 2048, "intermediate_size": 6144},
}
_TINY = {
    "reader_tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 8192}
}
_TEXT = "amber birch coral delta ember fjord grove heath inlet jetty knoll ledge marsh north oasis plain"
_WORDS = _TEXT.split()


def seconds_of(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Return the median time of a call, after two that are not counted."""
    times: list[float] = []
    for _ in range(rounds + 2):
        _wait(device)
        began_s = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - began_s)
    return statistics.median(times[2:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_flops_per_s(device: torch.device, size: int) -> float:
    """Return the operations a second of the fastest of a few square products in bfloat16."""
    best = 0.0
    for side in (size // 2, size, 2 * size):
        left = torch.randn(side, side, device=device, dtype=torch.bfloat16)
        right = torch.randn(side, side, device=device, dtype=torch.bfloat16)
        best = max(best, 2.0 * side**3 / seconds_of(lambda a=left, b=right: a @ b, device, 10))
    return best


def write_reader(folder: Path, sizes: dict[str, Any]) -> Path:
    """Write a Qwen3 with random weights and the tokenizer of `graft-mini`."""
    shape: dict[str, Any] = {
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
    }
    config = Qwen3Config(**(shape | sizes), max_position_embeddings=ROW_TOKENS, tie_word_embeddings=True)
    model: Any = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(READER / name, folder / name)
    return folder


def write_encoder(folder: Path, *, is_tiny: bool) -> Path:
    """Write a sentence-transformers model of BERT's shape with random weights."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    sizes: dict[str, Any] = (
        {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128} if is_tiny else {}
    )
    heads: dict[str, Any] = {"num_attention_heads": 2} if is_tiny else {}
    BertModel(BertConfig(**sizes, **heads)).save_pretrained(folder / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(READER / name, folder / "bert" / name)
    transformer = Transformer(str(folder / "bert"), max_seq_length=DOCUMENT_TOKENS)
    model = SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension())])
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    return folder / "model"


def text_of(rng: random.Random, num_words: int) -> str:
    """Return some words."""
    return " ".join(rng.choice(_WORDS) for _ in range(num_words))


def packed_rows(tower: ReaderTower, num_tokens: int) -> list[ReaderRow]:
    """Return rows of questions over one passage that hold so many tokens together."""
    rng = random.Random(0)
    rows: list[ReaderRow] = []
    while sum(row.num_tokens for row in rows) < 0.94 * num_tokens:  # The rest is what packing leaves.
        passage = TrainingPassage("p", text_of(rng, rng.randint(60, 180)), "Heath")
        question = TrainingQuestion("q", text_of(rng, 12), (text_of(rng, 6),), ("p",))
        rows.append(tower.rows.row(question, [passage], 1))
    return rows


def measure_reader(
    report: Report, name: str, folder: Path, device: torch.device, peak: float, num_tokens: int
) -> None:
    """Record the steps of one reader."""
    tower = ReaderTower(ReaderConfig(model=str(folder), row_tokens=ROW_TOKENS), device)
    if device.type == "cuda":
        tower.model.get_decoder().compile()
    tower.train()
    optimizer = TowerOptimizer("reader", tower, 1e-5, OptimConfig(steps=1_000, warmup_steps=1))
    rows = packed_rows(tower, num_tokens)
    fill = 0.0

    def step() -> None:
        nonlocal fill
        with torch.autocast(device.type, torch.bfloat16):
            found = tower.likelihoods(rows)
        fill = found.fill
        (-found.token_log_probs_NL.sum() / found.taught_NL.sum()).backward()
        optimizer.clip([])
        optimizer.move(1)

    step_s = seconds_of(step, device, 8)
    tokens = sum(row.num_tokens for row in rows)
    flops = 3.0 * ModelShape.of(folder).forward_flops(tokens, tokens / len(rows))
    report.add(
        name,
        "mfu",
        round(flops / step_s / peak, 3),
        "share of matmul",
        target=MFU_TARGET,
        better="higher",
        tokens=tokens,
        fill=round(fill, 3),
        step_s=round(step_s, 4),
    )
    report.add(name, "tokens_per_s", round(tokens / step_s), "tokens/s", better="higher")


def measure_encoder(report: Report, folder: Path, device: torch.device, num_documents: int) -> None:
    """Record how fast documents of 128 tokens are encoded."""
    rng = random.Random(1)
    texts = [text_of(rng, DOCUMENT_TOKENS) for _ in range(num_documents)]  # Cut to 128 tokens each.
    encoder = SnapshotEncoder(
        folder, max_passage_tokens=DOCUMENT_TOKENS, device=str(device), dtype="bfloat16"
    )
    from_text_s = seconds_of(lambda: encoder.encode(texts), device, 3)
    tower, batch = encoder.tower, encoder.batch_passages
    features = [tower.features(texts[at : at + batch], "passage") for at in range(0, num_documents, batch)]

    @torch.inference_mode()
    def forward() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            for one in features:
                tower(one, "passage")

    forward_s = seconds_of(forward, device, 3)
    tokens = sum(int(one["attention_mask"].sum()) for one in features) / num_documents
    for metric, took_s, target in (
        ("documents_per_s", forward_s, DOCUMENTS_TARGET),
        ("documents_per_s_from_text", from_text_s, None),
    ):
        detail = {} if target is None else {"target": target}
        rate = round(num_documents / took_s)
        report.add("encoder_bert_base", metric, rate, "documents/s", better="higher", tokens=tokens, **detail)


def main() -> None:
    """Measure every arm and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="unused: all is made here")
    parser.add_argument("--quick", action="store_true", help="tiny shapes on any device; keeps nothing")
    options = parser.parse_args()
    if not options.quick and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --quick runs tiny shapes on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = Report("gpu_training", quick=options.quick)
    torch.manual_seed(0)
    peak = matmul_flops_per_s(device, 256 if options.quick else 8192)
    report.add("matmul", "tflops", round(peak / 1e12, 2), "TFLOP/s", better="higher")
    with tempfile.TemporaryDirectory() as home:
        for name, sizes in (_TINY if options.quick else _QWEN3).items():
            folder = write_reader(Path(home) / name, sizes)
            num_tokens = 2 * ROW_TOKENS if options.quick else 8 * ROW_TOKENS
            measure_reader(report, name, folder, device, peak, num_tokens)
            shutil.rmtree(folder)
        encoder = write_encoder(Path(home) / "encoder", is_tiny=options.quick)
        measure_encoder(report, encoder, device, 256 if options.quick else 16_384)
    report.save()


if __name__ == "__main__":
    main()
