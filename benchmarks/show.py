"""The results of the big table as text, as Markdown, and as a picture (SVG)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Protocol

Results = Mapping[str, Any]


class Row(Protocol):
    """What is shown of a row of `table.py`."""

    @property
    def key(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...


Rows = Mapping[str, Row]

CONDENSED_ROWS = (
    "call",
    "flight50",
    "flight1000",
    "callback",
    "callbacks",
    "chain",
    "echo1k",
    "echo1m",
    "echo64m",
    "first",
    "import",
    "cpu_here",
    "cpu_there",
    "bytes",
    "ref_here",
)
CONDENSED_COLUMNS = (
    "capnode, uvloop",
    "capnode, blocking",
    "Connection",
    "Manager",
    "RPyC",
    "Pyro5",
    "execnet",
    "pycapnp",
    "gRPC aio",
    "MCP SDK",
)
DRAWN = ("call", "flight1000", "callback", "chain", "echo1m", "echo64m", "first", "cpu_there")
_A_BLOCK = 7  # columns that stand side by side
_LARGER_IS_BETTER = ("/s", "MB/s")


def median(column: Mapping[str, Any], key: str) -> float | None:
    runs = column["figures"].get(key)
    return statistics.median(runs) if runs else None


def number(value: float, unit: str) -> str:
    """As short as its precision allows."""
    if unit == "" and value >= 10:
        return f"{value:,.0f}"
    if unit in ("", "ms") and value < 10:
        return f"{value:.2f}"
    if unit == "us" and value < 100:
        return f"{value:.1f}"
    digits = 3 if value >= 1000 else 2 if value >= 100 else 0
    rounded = round(value, digits - len(str(int(value)))) if digits else value
    return f"{rounded:,.0f}"


def spread(runs: Sequence[float]) -> str:
    """Half the distance between the quartiles, as a part of the median."""
    if len(runs) < 3:
        return ""
    low, middle, high = statistics.quantiles(runs, n=4)
    return f" ±{(high - low) / 2 / middle:.0%}" if middle else ""


def titled(row: Row) -> str:
    return f"{row.name}, {row.unit}" if row.unit not in ("", "/s") else row.name


def is_better(one: float, other: float, row: Row) -> bool:
    return one > other if row.unit in _LARGER_IS_BETTER else one < other


def text(results: Results, rows: Rows) -> str:
    lines = [", ".join(f"{name}: {value}" for name, value in results["machine"].items())]
    for block in _blocks(results["columns"]):
        lines += ["", f"{'':40}" + "".join(f"{column['name']:>19}" for column in block)]
        for row in rows.values():
            cells = [_cell(column, row) for column in block]
            if any(cell != "-" for cell in cells):
                lines.append(f"{titled(row):40}" + "".join(f"{cell:>19}" for cell in cells))
    lines += ["", *reasons(results, rows)]
    return "\n".join(lines)


def _cell(column: Mapping[str, Any], row: Row) -> str:
    runs = column["figures"].get(row.key)
    if not runs:
        return "-"
    return number(statistics.median(runs), row.unit) + spread(runs)


def _blocks(columns: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """Few enough columns for a line; ours, if they are many, stand before the peers."""
    for start in range(0, len(columns), _A_BLOCK):
        yield columns[start : start + _A_BLOCK]


def reasons(results: Results, rows: Rows) -> list[str]:
    """Why a cell is a dash: one line for each contender."""
    lines = []
    for column in results["columns"]:
        why: dict[str, list[str]] = {}
        for key, reason in column["cannot"].items():
            if key in rows:
                why.setdefault(reason.split("\n")[0], []).append(rows[key].name)
        if len(why) == 1 and len(next(iter(why.values()))) > len(rows) // 2:
            lines.append(f"{column['name']}: {next(iter(why))}.")
        elif why:
            told = "; ".join(f"{reason} ({', '.join(names)})" for reason, names in why.items())
            lines.append(f"{column['name']}: {told}.")
    return lines


def markdown(
    results: Results, rows: Rows, keys: Sequence[str] = (), names: Sequence[str] = ()
) -> str:
    """A table; the best of each row is bold, floors left out."""
    columns = [column for column in results["columns"] if not names or column["name"] in names]
    shown = [rows[key] for key in keys] if keys else list(rows.values())
    blocks = [columns] if names else list(_blocks(columns))
    tables = []
    for block in blocks:
        lines = ["| | " + " | ".join(column["name"] for column in block) + " |"]
        lines.append("| --- |" + " ---: |" * len(block))
        for row in shown:
            best = _best(results, row)
            cells = []
            for column in block:
                value = median(column, row.key)
                cell = "-" if value is None else number(value, row.unit)
                cells.append(f"**{cell}**" if value is not None and value == best else cell)
            if any(cell != "-" for cell in cells):
                lines.append(f"| {titled(row)} | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _best(results: Results, row: Row) -> float | None:
    values = [
        value
        for column in results["columns"]
        if not column["name"].startswith("floor") and (value := median(column, row.key)) is not None
    ]
    if not values:
        return None
    return max(values) if row.unit in _LARGER_IS_BETTER else min(values)


# The picture: a panel for each row, a line for each contender, its figure on a logarithmic scale.

_WIDTH, _PANEL, _LINE, _NAMES, _TOP = 960, 470, 17, 125, 44
_OURS, _FLOOR, _PEER, _INK, _RULE = "#1a6fb5", "#9a9a9a", "#c8742c", "#222222", "#dddddd"


def picture(results: Results, rows: Rows) -> str:
    panels = []
    heights = [0, 0]
    for key in DRAWN:
        drawn, height = _panel(results, rows[key])
        side = heights.index(min(heights))
        panels.append(f'<g transform="translate({10 + side * _PANEL},{heights[side]})">{drawn}</g>')
        heights[side] += height
    machine = results["machine"]
    told = f"{machine['CPU']}; {machine['kernel']}; {machine['Python']}; pinned to one CPU"
    height = max(heights) + 30
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
                f'width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="11">'
            ),
            f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
            *panels,
            f'<text x="10" y="{height - 10}" fill="{_INK}">{escape(told)}</text>',
            "</svg>",
            "",
        ]
    )


def _panel(results: Results, row: Row) -> tuple[str, int]:
    """One row of the table, the best contender first."""
    found = [
        (value, column)
        for column in results["columns"]
        if (value := median(column, row.key)) is not None and value > 0
    ]
    found.sort(key=lambda pair: pair[0], reverse=row.unit in _LARGER_IS_BETTER)
    better = "more is better" if row.unit in _LARGER_IS_BETTER else "less is better"
    title = (
        f'<text x="0" y="30" font-size="13" font-weight="bold" fill="{_INK}">{escape(titled(row))}'
        f'<tspan font-weight="normal" font-size="11"> ({better}, logarithmic)</tspan></text>'
    )
    parts = [title]
    if not found:
        return "".join(parts), _TOP + 20
    low = math.floor(math.log10(min(value for value, _ in found)) * 0.999)
    high = max(math.ceil(math.log10(max(value for value, _ in found))), low + 1)
    scale = (_PANEL - _NAMES - 90) / (high - low)
    bottom = _TOP + len(found) * _LINE
    for power in range(low, high + 1):
        x = _NAMES + (power - low) * scale
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{bottom}" stroke="{_RULE}"/>'
        )
    for line, (value, column) in enumerate(found):
        y = _TOP + line * _LINE + 6
        x = _NAMES + (math.log10(value) - low) * scale
        floor = column["name"].startswith("floor")
        colour = _OURS if column["ours"] else _FLOOR if floor else _PEER
        parts.append(
            f'<text x="{_NAMES - 8}" y="{y + 4}" text-anchor="end" fill="{colour}">'
            f"{escape(column['name'])}</text>"
            f'<line x1="{_NAMES}" x2="{x:.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
            'stroke-width="2" stroke-opacity="0.35"/>'
            f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="{colour}"/>'
            f'<text x="{x + 8:.1f}" y="{y + 4}" fill="{_INK}">{number(value, row.unit)}</text>'
        )
    return "".join(parts), bottom + 20


# Curves: a panel for each, both scales logarithmic.

_COLOURS = {
    "capnode, uvloop": _OURS,
    "capnode, blocking": "#58a6de",
    "floor, uvloop": _FLOOR,
    "Connection": "#444444",
    "execnet": "#b3a12c",
    "RPyC": "#7b4fa3",
    "Pyro5": _PEER,
    "pycapnp": "#3d9c5a",
}
Panel = tuple[str, str, str, Mapping[str, Sequence[tuple[float, float]]]]


def lines(panels: Sequence[Panel], machine: Mapping[str, str]) -> str:
    """The picture of curves: title, x, y and the points by name, for each panel."""
    drawn = [
        f'<g transform="translate({10 + n % 2 * _PANEL},{n // 2 * 330})">{_curves(panel)}</g>'
        for n, panel in enumerate(panels)
    ]
    height = -(-len(panels) // 2) * 330 + 30
    told = f"{machine['CPU']}; {machine['kernel']}; {machine['Python']}; pinned to one CPU"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="11">'
    )
    foot = f'<text x="10" y="{height - 10}" fill="{_INK}">{escape(told)}</text>'
    back = f'<rect width="{_WIDTH}" height="{height}" fill="white"/>'
    return "\n".join([head, back, *drawn, foot, "</svg>", ""])


def _curves(panel: Panel) -> str:
    title, x_name, y_name, found = panel
    points = {name: [pair for pair in some if pair[1] > 0] for name, some in found.items()}
    pairs = [pair for some in points.values() for pair in some]
    xs = _decades([x for x, _ in pairs])
    ys = _decades([y for _, y in pairs])
    left, right, top, bottom = 60, _PANEL - 20, 60, 280

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - xs[0]) / (xs[-1] - xs[0])
        up = (math.log10(y) - ys[0]) / (ys[-1] - ys[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    unit = f'<tspan font-weight="normal" font-size="11"> ({escape(y_name)})</tspan>'
    parts = [
        f'<text x="0" y="20" font-size="13" font-weight="bold">{escape(title)}{unit}</text>',
    ]
    for power in xs:
        x, _ = at(10**power, 10 ** ys[0])
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{_RULE}"/>')
        parts.append(_label(x, bottom + 14, _power(power), "middle"))
    for power in ys:
        _, y = at(10 ** xs[0], 10**power)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_RULE}"/>')
        parts.append(_label(left - 6, y + 4, _power(power), "end"))
    parts.append(_label(right, bottom + 28, x_name, "end"))
    for n, (name, some) in enumerate(points.items()):
        colour = _COLOURS.get(name, _INK)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*pair) for pair in some))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x = left + n % 3 * 135
        parts.append(
            f'<text x="{x}" y="{34 + n // 3 * 12}" fill="{colour}" font-weight="bold">'
            f"{escape(name)}</text>"
        )
    return "".join(parts)


def _decades(values: Sequence[float]) -> range:
    low = math.floor(math.log10(min(values)))
    return range(low, max(math.ceil(math.log10(max(values))), low + 1) + 1)


def _power(power: int) -> str:
    names = {0: "1", 1: "10", 2: "100", 3: "1 k", 4: "10 k", 5: "100 k", 6: "1 M", 7: "10 M"}
    return names.get(power, f"1e{power}")


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_INK}">{escape(text)}</text>'
    )
