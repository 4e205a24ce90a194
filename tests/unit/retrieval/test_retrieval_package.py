"""The package's front: its public names, and that importing it is cheap."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

import retrieval
from retrieval.config import RetrievalConfig


def test_all_is_true_and_complete() -> None:
    assert sorted(retrieval.__all__) == sorted(set(retrieval.__all__))
    for name in retrieval.__all__:
        assert getattr(retrieval, name).__module__.startswith("retrieval.") or name == "SearchMode"
    assert set(retrieval.__all__) == set(retrieval._MODULE_OF)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Shardd"):
        _ = retrieval.Shardd


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, retrieval, retrieval.types, retrieval.config, retrieval.extraction.files;"
        "heavy = {'torch', 'faiss', 'ray', 'transformers', 'numpy', 'mammoth'} & set(sys.modules);"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_setting_is_described_and_bounded() -> None:
    source = __import__("inspect").getsource(RetrievalConfig)
    for field in dataclasses.fields(RetrievalConfig):
        after = source.split(f"    {field.name}: ", 1)[1].split("\n", 2)[1]
        assert after.strip().startswith('"""'), field.name


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"alpha": 1.5}, "alpha must be from 0 to 1; got 1.5"),
        ({"chunk_tokens": 1}, "chunk_tokens must be from 16"),
        ({"chunk_overlap_tokens": 100}, "at most half of chunk_tokens"),
        ({"max_document_bytes": "big"}, "max_document_bytes must be a number"),
        ({"embedder": ""}, "embedder is empty"),
        ({"embed_device": "tpu"}, "embed_device must be"),
    ],
)
def test_setting_out_of_bounds_names_field_value_and_bound(settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RetrievalConfig(**settings)
