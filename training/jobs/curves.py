"""Curves as inline SVG, for pages that need nothing but themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 420, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 8, 8, 24
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df", "#9a6700", "#57606a")
_MAX_POINTS = 400


@dataclass(frozen=True, slots=True)
class Curve:
    """One line."""

    name: str
    """What the legend calls it."""
    steps: Sequence[float]
    """Where its points are, ascending."""
    values: Sequence[float]
    """As many; those that are not finite leave a gap."""


def chart(title: str, curves: Sequence[Curve]) -> str:
    """Return a figure with axes, lines and a legend; curves longer than it is wide are thinned to means."""
    points = [_thinned(curve) for curve in curves]
    finite = [value for line in points for _, value in line if math.isfinite(value)]
    if not finite:
        return ""
    first = min(step for line in points for step, _ in line)
    last = max(step for line in points for step, _ in line)
    low, high = min(finite), max(finite)
    if low == high:
        low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)

    def at(step: float, value: float) -> tuple[float, float]:
        across = (step - first) / ((last - first) or 1.0)
        up = (value - low) / (high - low)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [_axes(low, high, first, last)]
    for index, line in enumerate(points):
        colour = _COLOURS[index % len(_COLOURS)]
        parts += [_path(piece, colour) for piece in _pieces([(*at(*one), one[1]) for one in line])]
    legend = "".join(
        f'<span style="color:{_COLOURS[index % len(_COLOURS)]}">&#9632; {escape(curve.name)}</span> '
        for index, curve in enumerate(curves)
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg><div>{legend}</div></figure>"
    )


def _axes(low: float, high: float, first: float, last: float) -> str:
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)
        parts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#d0d7de"/>'
            f'<text x="{_LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{low + share * (high - low):.4g}</text>'
        )
    y = _HEIGHT - 6
    parts.append(f'<text x="{_LEFT}" y="{y}">{first:g}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{y}" text-anchor="end">step {last:g}</text>')
    return "".join(parts)


def _path(piece: Sequence[tuple[float, float]], colour: str) -> str:
    if len(piece) == 1:
        return f'<circle cx="{piece[0][0]:.1f}" cy="{piece[0][1]:.1f}" r="2.5" fill="{colour}"/>'
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in piece)
    return f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _pieces(places: Sequence[tuple[float, float, float]]) -> list[list[tuple[float, float]]]:
    """Return runs of points whose value is finite."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y, value in places:
        if math.isfinite(value):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _thinned(curve: Curve) -> list[tuple[float, float]]:
    points = list(zip(curve.steps, curve.values, strict=True))
    if len(points) <= _MAX_POINTS:
        return points
    size = math.ceil(len(points) / _MAX_POINTS)
    blocks = [points[index : index + size] for index in range(0, len(points), size)]
    return [(block[-1][0], sum(value for _, value in block) / len(block)) for block in blocks]
