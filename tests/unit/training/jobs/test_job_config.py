"""A job's configuration: read whole, refused where it cannot be run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from training.data import SetKind
from training.errors import ConfigError
from training.jobs import parse_job
from training.jobs.job_config import SourceKind

MINE = """
kind = "mine"
out = "runs/mined"
[data.train]
kind = "squad"
path = "train.json"
"""


def test_a_joint_job_is_read_with_its_own_table(job_text: str, tmp_path: Path):
    job = parse_job(job_text, ["joint.optim.steps=9", "ranks.num_workers=2"])
    assert (job.kind, job.name, job.num_steps) == ("joint", "run", 9)
    assert job.tables["joint"].search.k == 3
    assert job.ranks.num_workers == 2
    assert job.resolved().out == tmp_path / "run"


def test_a_job_that_takes_no_steps_needs_no_table_of_its_own():
    job = parse_job(MINE)
    assert job.num_steps == 0
    assert job.tables["mine"].num_negatives == 7


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward", "grpo"])
def test_every_other_kind_is_read_by_its_own_table(kind: str, tmp_path: Path):
    rollout = f"[{kind}.rollout.limits]\nmax_turns = 2\n" if kind == "grpo" else ""
    text = MINE.replace('"mine"', f'"{kind}"') + (
        f'[{kind}.policy]\nfolder = "{tmp_path}"\n[{kind}.train]\nsteps = 4\n{rollout}'
    )
    assert parse_job(text).num_steps == 4
    with pytest.raises(ConfigError, match=r"polcy.*did you mean 'policy'"):
        parse_job(text.replace(f"[{kind}.policy]", f"[{kind}.polcy]"))


def test_the_formats_are_those_of_the_readers_and_a_library():
    assert get_args(SourceKind) == (*get_args(SetKind), "library")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("kind = ", "knid = "), "kind must be one of"),
        (("[joint]", "[jiont]"), "did you mean 'joint'"),
        (("seed = 3", "sede = 3"), "unknown key 'sede'; did you mean 'seed'"),
        (("dev_share = 0.3", "dev_share = 1.5"), "data.dev_share must be from 0 to below 1"),
        (("[joint]", "[sft]\n[joint]"), r"table \[sft\] belongs to kind 'sft'"),
        (("[joint]", "[ranks]\ngpus = 2.0\n[joint]"), "a worker drives one GPU"),
        (("[joint]", "[index]\nnum_shards = 0\n[joint]"), "index.num_shards must be 1 or more"),
        (("[joint]", '[ranks]\nresources = "a"\n[joint]'), "resources is a table"),
        (("[joint]", '[ranks.resources]\na = "x"\n[joint]'), "resources.a='x' is not of type float"),
        (('kind = "squad"', 'kind = "library"'), "a library has no questions"),
    ],
)
def test_what_cannot_be_run_is_refused(job_text: str, change: tuple[str, str], says: str):
    assert change[0] in job_text
    with pytest.raises(ConfigError, match=says):
        parse_job(job_text.replace(*change, 1))


def test_only_joint_jobs_take_several_workers():
    with pytest.raises(ConfigError, match="'mine' runs on one rank"):
        parse_job(MINE, ["ranks.num_workers=2"])


def test_relative_paths_are_named(job_text: str):
    assert parse_job(job_text).relative_paths() == []
    assert parse_job(MINE).relative_paths() == ["out='runs/mined'", "data.train.path='train.json'"]


def test_reading_a_joint_job_loads_nothing_heavy():
    code = (
        "import sys; from training.jobs import parse_job; "
        f"parse_job({MINE.replace('mine', 'joint')!r}, "
        "['joint.loss.retriever=none', 'joint.loss.contrastive_weight=1.0']); "
        "print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[4] / "training/configs").glob("joint-*.toml"))
)
def test_shipped_configurations_are_read(path: Path):
    assert parse_job(path.read_text(encoding="utf-8")).kind == "joint"
