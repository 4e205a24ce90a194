"""Draws `docs/plots/NAME.svg` from every `benchmarks/results/NAME.json`: a bar per arm, a line per target.

Run: `python -m benchmarks.plots`. The same results give the same file, byte for byte.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.report import RESULTS

PLOTS = RESULTS.parent.parent / "docs" / "plots"
MORE_IS_BETTER = ("score", "share", "cosine", "queries/s", "records/s", "chunks/s", "kills", "records")
"""Units of figures that aim upwards, where a row does not say it."""
BAR = "#4c8c5a"
TARGET = "#b5532d"
PANEL_HEIGHT_IN = 0.5
"""Height of a panel with one bar, without its labels."""
LABELS_IN = 0.75
"""Height of a panel's title and axis."""
WIDTH_IN = 7.0


def panels(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that share an axis: those of one metric and unit, in the order they were measured."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(f"{row['metric']} ({row['unit']})", []).append(row)
    return found


def draw_panel(axes: Axes, title: str, rows: list[dict[str, Any]]) -> None:
    """Draw one metric: a bar per arm with its value, and a mark where its target is."""
    values = [float(row["value"]) for row in rows]
    targets = [row.get("target") for row in rows]
    spreads = [row.get("quartiles") or row.get("runs") or [] for row in rows]
    ends = [max(spread) for spread in spreads if spread]
    limit = max([*values, *ends, *(target for target in targets if target is not None)]) or 1.0
    for place, (row, value, target, spread) in enumerate(zip(rows, values, targets, spreads, strict=True)):
        axes.barh(place, value, height=0.6, color=BAR)
        if spread:
            axes.plot([min(spread), max(spread)], [place, place], color="black", linewidth=1.2)
        if target is not None:
            axes.plot([target, target], [place - 0.42, place + 0.42], color=TARGET, linewidth=2)
        more = row.get("better", "higher" if row["unit"] in MORE_IS_BETTER else "lower") == "higher"
        bound = "at least" if more else "at most"
        note = f"{value:g}" if target is None else f"{value:g}  ({bound} {target:g})"
        axes.annotate(note, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, limit * 1.1)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _label(row: dict[str, Any]) -> str:
    """Return the arm, and what tells its rows apart."""
    return " ".join(str(row[name]) for name in ("collection", "arm", "kind") if name in row)


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the figure of one result."""
    groups = panels(record["rows"])
    heights = [LABELS_IN + PANEL_HEIGHT_IN * len(rows) for rows in groups.values()]
    figure, grid = plt.subplots(
        len(groups),
        1,
        figsize=(WIDTH_IN, sum(heights) + 0.6),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axes, (title, rows) in zip(grid[:, 0], groups.items(), strict=True):
        draw_panel(axes, title, rows)
    machine = record["machine"]
    figure.suptitle(
        f"{record['benchmark']}: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GiB, "
        f"GPU {machine['gpu']}\ncommit {record['commit']}, {record['date']}; "
        "bar: measured (line: its spread), red: target",
        fontsize=8,
    )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Draw every result there is."""
    mpl.rcParams.update({"svg.hashsalt": "graft", "font.size": 9, "axes.axisbelow": True})
    PLOTS.mkdir(parents=True, exist_ok=True)
    for result in sorted(RESULTS.glob("*.json")):
        path = PLOTS / f"{result.stem}.svg"
        draw(json.loads(result.read_text(encoding="utf-8")), path)
        print(path.relative_to(RESULTS.parent.parent))


if __name__ == "__main__":
    main()
