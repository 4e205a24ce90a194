"""What a person sees of a job while it runs."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from training.jobs.progress import LogFollower, Progress, duration

FIGURES = {
    "loss": 1.25,
    "search/recall": 0.5,
    "index/staleness": 3.0,
    "questions_per_s": 8.0,
    "time/stall_s": 0.5,
}


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def plain(num_steps: int, clock: Clock) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress("run", num_steps, console=Console(file=out, width=200), clock=clock), out


def test_a_step_is_told_with_what_the_job_has():
    clock = Clock()
    progress, _ = plain(100, clock)
    with progress:
        for step in range(3):
            clock.now_s += 2.0
            progress.step(step, FIGURES)
        cells = dict(progress.cells(2, FIGURES))
    assert cells["step"] == "3/100"
    assert (cells["loss"], cells["recall"], cells["index age"]) == ("1.2500", "0.500", "3")
    assert cells["questions/s"] == "8.0"
    assert cells["stall"] == "25%"  # 0.5 s of each 2 s
    assert cells["left"] == "3 min 14 s"  # 97 steps of 2 s
    assert "recall" not in dict(progress.cells(2, {"loss": 1.0}))


def test_plain_lines_come_now_and_then_and_at_the_end():
    clock = Clock()
    progress, out = plain(30, clock)
    with progress:
        for step in range(30):
            clock.now_s += 1.0
            progress.step(step, FIGURES)
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("job run  step 1/30  loss 1.2500")
    assert "step 30/30" in lines[-1]


def test_a_terminal_shows_one_live_table():
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True)
    with Progress("run", 2, console=console) as progress:
        progress.step(0, FIGURES)
        progress.step(1, FIGURES)
    assert "2/2" in out.getvalue()
    assert "index age" in out.getvalue()


def test_a_follower_tells_the_newest_whole_step_once(tmp_path: Path):
    def write(name: str, *steps: int) -> None:
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.writelines(json.dumps({"step": step, f"of_{name}": 1.0}) + "\n" for step in steps)

    follower = LogFollower(tmp_path)
    assert list(follower.new_steps()) == []
    write("metrics", 0, 1)
    write("timings", 0)
    assert list(follower.new_steps()) == [(0, {"of_metrics": 1.0, "of_timings": 1.0})]
    assert list(follower.new_steps()) == []
    with (tmp_path / "timings.jsonl").open("a") as file:
        file.write('{"step": 1, "of_ti')
    assert list(follower.new_steps()) == []
    assert list(LogFollower(tmp_path).new_steps()) == []


def test_durations_are_said_as_people_say_them():
    assert [duration(seconds) for seconds in (3.4, 61, 3_600, 93_784)] == [
        "3 s",
        "1 min 01 s",
        "1 h 00 min",
        "26 h 03 min",
    ]
