"""Every kind of job through the same door: trained, logged alike, stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.data.feedback import FeedbackPassage, FeedbackRow, Provenance
from training.errors import ConfigError, DataError
from training.jobs import JobOutcome, JobText, LocalJobs, run_job
from training.jobs.feedback_rows import feedback_rows
from training.jobs.progress import Progress

WHO = Provenance("run-1", library="lights")


def feedback(path: Path, num_rows: int = 6) -> Path:
    """Write judgements: half of the questions were answered wrongly and corrected."""
    rows = []
    for index in range(num_rows):
        shown = (FeedbackPassage(f"p{index}", f"The keeper of light {index} is Ada."),)
        wrong = index % 2 == 0
        rows.append(
            FeedbackRow(
                feedback_id=f"f{index}",
                question=f"Who keeps light {index}?",
                answer="Bo [1]" if wrong else "Ada [1]",
                provenance=WHO,
                consent=True,
                rating="down" if wrong else "up",
                corrected_answer="Ada [1]" if wrong else "",
                passages=shown,
            )
        )
    path.write_text("".join(row.to_json() + "\n" for row in rows))
    return path


@pytest.fixture
def run(tmp_path: Path, tiny_models: tuple[Path, Path], lookup_file: Path):
    encoder, policy = tiny_models

    def run(
        kind: str, source: str, path: Path, more: str = "", *, steps: int = 2, resume=False
    ) -> JobOutcome:
        text = f"""
            kind = "{kind}"
            out = "{tmp_path / kind}"
            [data.ranker]
            model = "{encoder}"
            max_passage_tokens = 64
            [data.train]
            kind = "{source}"
            path = "{path}"
            [{kind}]
            {more}
            [{kind}.policy]
            folder = "{policy}"
            [{kind}.train]
            steps = {steps}
            batch_size = 2
        """
        return run_job(JobText(text), LocalJobs(tmp_path / "jobs"), resume=resume)

    return run


def steps_of(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_feedback_comes_back_as_it_was_written(tmp_path: Path):
    path = feedback(tmp_path / "feedback.jsonl")
    assert [row.to_json() for row in feedback_rows(path)] == path.read_text().splitlines()
    path.write_text('{"feedback_id": "x", "question": "q", "provenance": {"run_id": "r"}, "rating": "meh"}\n')
    with pytest.raises(DataError, match=r"feedback.jsonl:1: .*'rating' must be one of up, down"):
        list(feedback_rows(path))


@pytest.mark.parametrize("source", ["squad", "feedback"])
def test_sft_learns_from_a_set_and_from_feedback(run, tmp_path: Path, lookup_file: Path, source: str):
    path = lookup_file if source == "squad" else feedback(tmp_path / "feedback.jsonl")
    outcome = run("sft", source, path)
    assert (outcome.state, outcome.steps) == ("succeeded", 2)
    assert steps_of(tmp_path / "sft") == [0, 1]
    assert (tmp_path / "sft" / "model" / "model.safetensors").exists()
    assert "loss" in (tmp_path / "sft" / "report.html").read_text()


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_judged_answers_become_pairs(run, tmp_path: Path, kind: str):
    assert run(kind, "feedback", feedback(tmp_path / "feedback.jsonl")).state == "succeeded"
    assert steps_of(tmp_path / kind) == [0, 1]


def test_pairs_need_judgements(run, tmp_path: Path, lookup_file: Path):
    with pytest.raises(ConfigError, match=r"data\.train\.kind must be 'feedback', got 'squad'"):
        run("dpo", "squad", lookup_file)
    approved = feedback(tmp_path / "feedback.jsonl")
    lines = approved.read_text().splitlines(keepends=True)
    approved.write_text("".join(line for line in lines if '"up"' in line))
    with pytest.raises(DataError, match="no two answers to one question"):
        run("reward", "feedback", approved)


def test_grpo_searches_the_passages_of_its_set(run, tmp_path: Path, lookup_file: Path):
    limits = (
        "group_size = 2\n[grpo.rollout]\nmax_turn_tokens = 8\nmax_completion_tokens = 64\n"
        "[grpo.rollout.limits]\nmax_turns = 2\nmax_snippet_chars = 60\n"
    )
    assert run("grpo", "squad", lookup_file, limits, steps=1).state == "succeeded"
    assert "reward" in (tmp_path / "grpo" / "metrics.jsonl").read_text()


def test_a_stopped_trl_job_is_saved_and_resumes(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = feedback(tmp_path / "feedback.jsonl")
    stop = tmp_path / "sft" / "stop"
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "step", lambda self, step, figures: stop.touch() if step == 0 else None)
        stopped = run("sft", "feedback", path, steps=4)
    assert (stopped.state, stopped.steps) == ("stopped", 2)
    assert run("sft", "feedback", path, steps=4, resume=True).state == "succeeded"
    assert steps_of(tmp_path / "sft") == [0, 1, 2, 3]
