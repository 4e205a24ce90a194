"""The packages of training data say the truth about their names and are cheap to import."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

PACKAGES = ("training.data", "training.negatives")


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_of_data_packages_are_true(package):
    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError):
        _ = module.no_such_name


def test_every_public_name_of_data_packages_loads_without_torch():
    heavy = ("torch", "faiss", "ray", "transformers", "sentence_transformers", "datasets")
    code = (
        f"import importlib, sys\nfor package in {PACKAGES!r}:\n"
        "    module = importlib.import_module(package)\n"
        "    [getattr(module, name) for name in module.__all__]\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
