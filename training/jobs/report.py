"""The report of a job: one HTML file with its curves and what it gained, needing no network and no script.

Whatever is in the job's folder is shown: a report can be written while a job runs and after it died.

Shapes: S bootstrap samples, Q questions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from training.index.durable_files import write_durably
from training.jobs.curves import Curve, chart
from training.jobs.job_folder import JobFolder
from training.jobs.log_lines import log_lines
from training.joint.run_log import EVALUATIONS, METRICS, TIMINGS

REPORT = "report.html"
MANIFEST = "run.json"
"""What a job is: configuration, data, machine, versions."""
_NUM_SAMPLES = 10_000
_GROUPS = (
    ("Losses", METRICS, ("loss",), True),
    ("Held-out questions", EVALUATIONS, ("held_out/",), True),
    ("Retrieval while training", METRICS, ("search/",), True),
    ("Teaching", METRICS, ("retriever/",), False),
    ("Age of the index", METRICS, ("index/",), False),
    ("Gradient norms", METRICS, ("grad_norm",), True),
    ("Rewards", METRICS, ("reward",), True),
    ("Seconds of a step", TIMINGS, ("time/",), True),
    ("Throughput", TIMINGS, ("questions_per_s", "tokens_per_s"), False),
)
"""Title, file, beginnings of the names of the figures below it, and whether these share one chart."""
_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#1f2328}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:2px 12px 2px 0;text-align:left}"
    "figure{display:inline-block;margin:0 12px 16px 0;width:420px;vertical-align:top}"
    "figcaption{font-weight:600}svg{width:100%;font-size:10px;fill:#57606a}"
    "pre{background:#f6f8fa;padding:1em;overflow:auto;font-size:12px}.note{color:#57606a}"
)


@dataclass(frozen=True, slots=True)
class Gain:
    """How a figure of the held-out questions changed, question by question."""

    before: float
    """Mean before the first step."""
    after: float
    """Mean after the last one."""
    low: float
    """Lower end of the 95 % interval of the change."""
    high: float
    """Upper end."""

    @property
    def change(self) -> float:
        """Return the mean change."""
        return self.after - self.before


def paired_gain(before_Q: Sequence[float], after_Q: Sequence[float], seed: int = 0) -> Gain:
    """Return the change of a mean with its paired bootstrap interval.

    Args:
        before_Q: Value of each question before.
        after_Q: Of the same questions in the same order.
        seed: Of the resampling.

    Source: Efron and Tibshirani 1993, percentile intervals; questions are resampled as pairs.
    """
    change_Q = np.asarray(after_Q, np.float64) - np.asarray(before_Q, np.float64)
    generator = np.random.Generator(np.random.PCG64(seed))
    means_S = np.empty(_NUM_SAMPLES)
    for start in range(0, _NUM_SAMPLES, 500):  # All samples at once would be large for many questions.
        picked_SQ = generator.integers(len(change_Q), size=(500, len(change_Q)))
        means_S[start : start + 500] = change_Q[picked_SQ].mean(axis=1)
    low, high = np.percentile(means_S, [2.5, 97.5])
    return Gain(float(np.mean(before_Q)), float(np.mean(after_Q)), float(low), float(high))


def held_out_gains(folder: Path, *, k: int = 5) -> dict[str, Gain]:
    """Return recall at k, EM and F1 before and after a joint run, where both were judged; empty otherwise."""
    judged = {int(path.stem.partition("-")[2]): path for path in (folder / "held_out").glob("step-*.json")}
    if 0 not in judged or max(judged) == 0:
        return {}
    before, after = (json.loads(judged[step].read_text(encoding="utf-8")) for step in (0, max(judged)))
    known = {one["question_id"]: one for one in before}
    pairs = [(known[one["question_id"]], one) for one in after if one["question_id"] in known]
    gains = {}
    for name, value in (
        (f"recall@{k}", lambda one: float(one["rank"] is not None and one["rank"] < k)),
        ("EM", lambda one: one["exact_match"]),
        ("F1", lambda one: one["f1"]),
    ):
        values = [(value(old), value(new)) for old, new in pairs]
        values = [(old, new) for old, new in values if old is not None and new is not None]
        if values:
            gains[name] = paired_gain([old for old, _ in values], [new for _, new in values])
    return gains


def write_report(folder: Path) -> Path:
    """Write the report of a job's folder and return where it is."""
    path = folder / REPORT
    content = report_html(folder).encode()
    write_durably(path, lambda file: file.write(content))
    return path


def report_html(folder: Path) -> str:
    """Return the report as one page."""
    status = JobFolder(folder).status()
    manifest = _manifest(folder)
    name = status.name if status else folder.name
    lines = {file: log_lines(folder / file) for file in (METRICS, EVALUATIONS, TIMINGS)}
    parts = [f"<h1>{escape(name)}</h1>"]
    if status is not None:
        of = f" of {status.num_steps:,}" if status.num_steps else ""
        parts.append(
            f"<p>{escape(status.kind)}, {status.state}: step {status.step or 0:,}{of}. "
            f"{escape(status.message)}</p>"
        )
    parts.append(_gains_table(held_out_gains(folder)))
    parts.append(_summary_table(lines))
    parts += [_group(title, lines[file], names, shared) for title, file, names, shared in _GROUPS]
    for title in ("data", "machine", "packages", "config"):
        if title in manifest:
            shown = json.dumps(manifest[title], indent=1, ensure_ascii=False)
            parts.append(f"<h2>{title.capitalize()}</h2><pre>{escape(shown)}</pre>")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def _gains_table(gains: Mapping[str, Gain]) -> str:
    if not gains:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{gain.before:.3f}</td><td>{gain.after:.3f}</td>"
        f"<td>{gain.change:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})</td></tr>"
        for name, gain in gains.items()
    )
    return (
        "<h2>Held-out questions</h2><table><tr><th></th><th>before</th><th>after</th>"
        f"<th>change, 95 % paired bootstrap</th></tr>{rows}</table>"
    )


def _summary_table(lines: Mapping[str, list[dict[str, Any]]]) -> str:
    timings, metrics = lines[TIMINGS], lines[METRICS]
    facts: list[tuple[str, str]] = []
    seconds = [line["time/step_s"] for line in timings if "time/step_s" in line]
    if seconds:
        facts.append(("median step", f"{np.median(seconds):.3f} s"))
        stalls = [line.get("time/stall_s", 0.0) for line in timings]
        facts.append(("waited for the index", f"{sum(stalls) / max(sum(seconds), 1e-9):.1%} of the time"))
    speeds = [line["questions_per_s"] for line in timings if "questions_per_s" in line]
    if speeds:
        facts.append(("median throughput", f"{np.median(speeds):.1f} questions/s"))
    ages = [line["index/staleness"] for line in metrics if "index/staleness" in line]
    if ages:
        facts.append(("oldest index searched", f"{max(ages):.0f} updates behind the weights"))
    if not facts:
        return '<p class="note">No step has been taken yet.</p>'
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts)
    return f"<table>{rows}</table>"


def _group(
    title: str, lines: Sequence[Mapping[str, Any]], beginnings: tuple[str, ...], is_shared: bool
) -> str:
    curves = []
    for name in sorted({name for line in lines for name in line if name.startswith(beginnings)}):
        points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
        curves.append(Curve(name, [step for step, _ in points], [value for _, value in points]))
    charts = [curves] if is_shared and curves else [[curve] for curve in curves]
    shown = "".join(chart(title if is_shared else one[0].name, one) for one in charts)
    return f"<h2>{escape(title)}</h2>{shown}" if shown else ""


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
