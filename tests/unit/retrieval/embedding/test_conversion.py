"""Converted models give what sentence-transformers gives; others are refused, and torch serves them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_model

from retrieval.config import RetrievalConfig
from retrieval.embedding import SentenceTransformerEmbedder, choice
from retrieval.embedding.onnx_backend import OnnxBackend
from retrieval.embedding.onnx_convert import convert
from retrieval.embedding.onnx_files import GRAPH, MANIFEST, converted_hash, read_manifest
from retrieval.embedding.torch_backend import TorchBackend

TEXTS = ["yes", "who wrote the first report on the flood", "a page holds keys " * 20, "日本語", ""]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def converted(source: Path, folder: Path) -> OnnxBackend:
    target = folder / converted_hash(source)
    assert convert(source, target) == ""
    manifest = read_manifest(target)
    assert manifest is not None
    return OnnxBackend("tiny", target, manifest, num_threads=1)


@pytest.mark.parametrize("is_query", [True, False])
@pytest.mark.parametrize(
    ("kind", "pooling", "prompts"),
    [
        ("bert", "mean", None),
        ("bert", "cls", {"query": "query: ", "passage": "passage: "}),
        ("roberta", "mean", None),
        ("distilbert", "mean", None),
    ],
)
def test_vectors_and_token_vectors_are_near_those_of_torch(
    tmp_path: Path, kind: str, pooling: str, prompts: dict[str, str] | None, is_query: bool
) -> None:
    source = save_model(tmp_path, kind, pooling=pooling, prompts=prompts)
    torch_backend = TorchBackend("tiny", source, device="cpu", num_threads=1)
    onnx_backend = converted(source, tmp_path / "converted")
    assert onnx_backend.info.dim == torch_backend.info.dim == 64
    assert onnx_backend.info.max_tokens == torch_backend.info.max_tokens == 128
    expected, got = (
        backend.encode(backend.tokenise(TEXTS, is_query=is_query), with_tokens=True)
        for backend in (torch_backend, onnx_backend)
    )
    assert (expected.vectors_ND * got.vectors_ND).sum(axis=1).min() > 0.99
    for expected_TD, got_TD in zip(expected.tokens or [], got.tokens or [], strict=True):
        assert got_TD.shape == expected_TD.shape
        assert len(got_TD) == 0 or (expected_TD * got_TD).sum(axis=1).mean() > 0.98


def test_a_vector_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    backend = converted(save_model(tmp_path, "bert"), tmp_path / "converted")
    tokenised = backend.tokenise(TEXTS, is_query=False)
    together_ND = backend.encode(tokenised, with_tokens=False).vectors_ND
    for text, vector_D in zip(tokenised, together_ND, strict=True):
        alone_ND = backend.encode([text], with_tokens=False).vectors_ND
        np.testing.assert_allclose(alone_ND[0], vector_D, atol=1e-5)


def test_a_model_with_another_module_is_refused_and_torch_serves_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = save_model(tmp_path, "bert", dense=True)
    target = tmp_path / "converted" / converted_hash(source)
    assert "Dense" in convert(source, target)
    manifest = read_manifest(target)
    assert manifest is not None
    assert "Dense" in manifest.refused
    assert not (target / GRAPH).exists()
    folder = str(tmp_path / "converted")
    with caplog.at_level(logging.WARNING):
        backend = choice.open_backend(RetrievalConfig(embedder=str(source), embed_folder=folder))
    assert backend.info.backend == "torch-fp32"
    assert "served by torch in fp32" in caplog.text
    with pytest.raises(ValueError, match=r"cannot be served by onnx-int8: its modules are .*Dense"):
        choice.open_backend(
            RetrievalConfig(embedder=str(source), embed_folder=folder, embed_backend="onnx-int8")
        )


def test_a_converted_model_that_computes_wrongly_here_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_model(tmp_path, "bert")
    converted(source, tmp_path / "converted")
    monkeypatch.setattr("retrieval.embedding.onnx_backend._MIN_MEAN_COSINE", 1.1)
    config = RetrievalConfig(embedder=str(source), embed_folder=str(tmp_path / "converted"))
    assert choice.open_backend(config).info.backend == "torch-fp32"


@pytest.mark.parametrize("name", [GRAPH, MANIFEST])
def test_a_damaged_conversion_is_made_anew_in_a_process_of_its_own(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = save_model(tmp_path, "bert")
    backend = converted(source, tmp_path / "converted")
    file = tmp_path / "converted" / backend.info.model_hash / name
    file.write_bytes(file.read_bytes()[:-40])
    config = RetrievalConfig(embedder=str(source), embed_folder=str(tmp_path / "converted"))
    with caplog.at_level(logging.WARNING):
        again = choice.open_backend(config)
    assert "damaged" in caplog.text
    assert again.info == choice.open_backend(config).info
    assert again.info.backend == "onnx-int8"
    assert again.info.model_hash == backend.info.model_hash


async def test_a_cached_conversion_is_served_without_its_weights_being_read_by_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_model(tmp_path, "bert")
    converted(source, tmp_path / "converted")
    monkeypatch.setattr(choice, "_convert", None)  # Calling it would raise.
    embedder = SentenceTransformerEmbedder(
        RetrievalConfig(
            embedder=str(source), embed_folder=str(tmp_path / "converted"), embed_cache_bytes=1 << 20
        )
    )
    first_ND, first = await embedder.embed_passages_with_tokens(TEXTS, "int8")
    monkeypatch.setattr(OnnxBackend, "encode", None)  # The second time all comes from the disk.
    second_ND, second = await embedder.embed_passages_with_tokens(TEXTS, "int8")
    np.testing.assert_array_equal(first_ND, second_ND)
    assert first == second
    await embedder.aclose()


def test_other_settings_of_the_same_weights_are_another_model(tmp_path: Path) -> None:
    source = save_model(tmp_path, "bert")
    other = shutil.copytree(source, tmp_path / "other")
    assert converted_hash(Path(other)) == converted_hash(source)
    settings = next(Path(other).glob("sentence_bert_config.json"))
    settings.write_text(settings.read_text().replace("{", '{"max_seq_length": 64,', 1))
    assert converted_hash(Path(other)) != converted_hash(source)
