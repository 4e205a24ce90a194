"""The report of a job: what it says, and that it needs nothing but itself."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from training.jobs.curves import Curve, chart
from training.jobs.job_folder import JobFolder, JobRecord
from training.jobs.report import held_out_gains, paired_gain, report_html, write_report


def judged(folder: Path, step: int, ranks: list[int | None], em: list[float | None]) -> None:
    (folder / "held_out").mkdir(exist_ok=True)
    rows = [
        {"question_id": f"q{i}", "rank": rank, "answer": None, "exact_match": match, "f1": match}
        for i, (rank, match) in enumerate(zip(ranks, em, strict=True))
    ]
    (folder / "held_out" / f"step-{step}.json").write_text(json.dumps(rows))


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.names.append(tag)
        if tag not in ("meta", "line", "polyline", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def test_an_interval_covers_the_true_change_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        before_Q = rng.random(80)
        after_Q = before_Q + rng.normal(0.05, 0.2, 80)
        gain = paired_gain(before_Q.tolist(), after_Q.tolist(), seed=trial)
        covered += gain.low <= 0.05 <= gain.high
    assert covered >= 52


def test_pairs_make_the_interval_narrow():
    rng = np.random.default_rng(1)
    before_Q = rng.integers(0, 2, 200).astype(float)
    after_Q = before_Q.copy()
    after_Q[np.flatnonzero(before_Q == 0)[:20]] = 1.0
    gain = paired_gain(before_Q.tolist(), after_Q.tolist())
    assert gain.change == pytest.approx(0.1)
    assert 0.05 < gain.low < 0.1 < gain.high < 0.15


def test_gains_compare_the_first_and_the_last_evaluation_question_by_question(tmp_path: Path):
    assert held_out_gains(tmp_path) == {}
    judged(tmp_path, 0, [0, 5, None, 7], [0.0, 0.0, 0.0, None])
    assert held_out_gains(tmp_path) == {}
    judged(tmp_path, 5, [9, 9, 9, 9], [0.0] * 4)
    judged(tmp_path, 20, [0, 4, 1, None], [1.0, 0.0, 1.0, 1.0])
    gains = held_out_gains(tmp_path)
    assert (gains["recall@5"].before, gains["recall@5"].after) == (0.25, 0.75)
    assert (gains["EM"].before, gains["EM"].after) == (0.0, pytest.approx(2 / 3))


def test_a_report_of_any_folder_is_one_page_by_itself(tmp_path: Path):
    assert "No step has been taken" in report_html(tmp_path)
    folder = tmp_path / "a <job>"
    folder.mkdir()
    JobFolder(folder).begin(JobRecord(name="a <job>", kind="joint", state="starting", num_steps=4))
    judged(folder, 0, [1, 9], [0.0, 0.0])
    judged(folder, 4, [0, 0], [1.0, 0.0])
    for name, figures in (
        ("metrics", {"loss": 2.0, "loss/reader": math.nan, "index/staleness": 3.0}),
        ("timings", {"time/step_s": 0.5, "time/stall_s": 0.1, "questions_per_s": 8.0}),
    ):
        text = "".join(json.dumps({"step": step, **figures}) + "\n" for step in range(4))
        (folder / f"{name}.jsonl").write_text(text)
    page = write_report(folder).read_text()
    assert "a &lt;job&gt;" in page
    assert "20.0% of the time" in page
    assert "3 updates behind" in page
    assert "+0.500 (" in page
    found = Elements()
    found.feed(page)
    assert found.open == []
    assert {"svg", "polyline", "table"} <= set(found.names)
    assert not {"script", "link", "img", "iframe"} & set(found.names)


def test_a_chart_breaks_at_numbers_that_are_none_and_thins_long_curves():
    broken = chart("x", [Curve("x", range(5), [1.0, 2.0, math.nan, 3.0, 4.0])])
    assert broken.count("<polyline") == 2
    assert chart("x", [Curve("x", [0], [math.nan])]) == ""
    assert chart("x", [Curve("x", [0], [1.0])]).count("<circle") == 1
    long = chart("x", [Curve("x", range(10_000), [float(step) for step in range(10_000)])])
    assert long.count(",") <= 401
