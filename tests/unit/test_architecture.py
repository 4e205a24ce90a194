"""Who may import whom, and that importing a package is cheap."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("graft", "retrieval", "serving", "agents", "training", "ui")
MAY_IMPORT = {
    "retrieval": set(),
    "serving": set(),
    "agents": {"retrieval", "serving"},
    "training": {"agents", "serving", "retrieval"},
    "ui": {"graft", "agents", "retrieval", "serving"},
    "graft": {"agents", "training", "serving", "retrieval", "ui"},
}
AGENTS_MAY_USE = {"retrieval.types", "retrieval.errors", "serving.types", "serving.errors", "serving.prompt"}
UI_MAY_USE = {
    "agents.events",
    "agents.state",
    "agents.errors",
    "retrieval.types",
    "retrieval.errors",
    "serving.errors",
}
HEAVY = ("torch", "faiss", "vllm", "ray", "gradio", "transformers", "sentence_transformers", "opentelemetry")


def imports(package: str) -> list[tuple[Path, str]]:
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(path, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{path}: relative import"
                found.append((path, node.module))
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_only_those_below_it(package):
    for path, module in imports(package):
        top = module.split(".")[0]
        if top in PACKAGES and top != package:
            assert top in MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {module}"
        assert top not in ("tests", "benchmarks", "examples"), f"{path.relative_to(ROOT)} imports {module}"


def test_agents_see_only_the_seams_of_the_parts_below():
    for path, module in imports("agents"):
        if module.split(".")[0] in ("retrieval", "serving"):
            assert module in AGENTS_MAY_USE, f"{path.relative_to(ROOT)} imports {module}"


def test_ui_talks_to_the_platform_through_types():
    for path, module in imports("ui"):
        if module.split(".")[0] in ("retrieval", "serving", "agents"):
            assert module in UI_MAY_USE, f"{path.relative_to(ROOT)} imports {module}"


def test_only_the_server_mounts_the_ui():
    users = {path.name for path, module in imports("graft") if module.split(".")[0] == "ui"}
    assert users == {"server.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_loads_nothing_heavy(package):
    code = f"import sys, {package}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_true(package):
    module = importlib.import_module(package)
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(ROOT), f"{package} is another project's: {module.__file__}"
    names = module.__all__
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError):
        _ = module.no_such_name


def test_every_package_is_in_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert set(listed) == found


def test_help_loads_nothing_heavy():
    code = (
        f"import sys, graft.cli; print([m for m in {(*HEAVY, 'langgraph', 'fastapi')!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
