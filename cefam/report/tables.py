"""Tables of region metrics as text, Markdown, CSV and LaTeX: top-1 first, then oracle."""

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from cefam.errors import CefamError, near
from cefam.io.files import csv_text
from cefam.metrics.functional import category_means
from cefam.metrics.table import METRICS, SECONDARY, title_of
from cefam.report.bootstrap import Difference
from cefam.report.sums import NEAR, THRESHOLD, Sums

BLOCKS = {
    "top1": "Top-1: each method's own first choice",
    "top1 common": "Top-1, only the pairs that all methods can express",
    "oracle": "Oracle: of at most {} candidates, the one with the best NRA against the ground truth",
    "oracle common": "Oracle, only the pairs that all methods can express",
}
COLUMNS = 100  # of a terminal


@dataclass(frozen=True)
class Row:
    """One method under one protocol.

    ``means[metric]`` has one value per category and their mean, ``None`` where empty; ``pairs``, ``undefined`` and ``coverage``
    are ``None`` if unknown (published numbers); ``near``: number of pairs whose NRA is within ``NEAR`` of the hit threshold.
    """

    protocol: str
    method: str
    means: dict[str, list[float | None]]
    pairs: int | None = None
    undefined: int | None = None
    coverage: float | None = None
    near: int = 0


@dataclass(frozen=True)
class Table:
    """Ordered rows, categories and metrics of their columns, and the differences in NRA avg and notes below the table."""

    categories: list[str]
    rows: list[Row]
    num_candidates: int
    notes: list[str]
    differences: list[Difference] = field(default_factory=list)
    columns: list[str] = field(default_factory=lambda: list(METRICS))


def summarize(
    sums: Sums,
    categories: Sequence[str],
    num_candidates: int,
    notes: Sequence[str] = (),
    differences: Sequence[Difference] = (),
    columns: Sequence[str] = (),
) -> Table:
    """Average records per protocol, method and category; "avg" is the unweighted mean over categories (Table 1)."""
    present = [name for name in categories if any(category == name for _, _, category in sums.counts)]
    shown = list(columns) or [*METRICS, *(name for name in SECONDARY if name in sums.values)]
    for name in shown if sums.counts else ():
        if name not in sums.values:
            raise CefamError(
                f"{name!r} was not measured.{near(name, sums.values)} There are {', '.join(sorted(sums.values))}."
            )
    rows = [_row(sums, protocol, method, present, shown) for protocol, method in sums.seen]
    rows.sort(key=lambda row: list(BLOCKS).index(row.protocol))  # stable: methods keep their order
    return Table(present, rows, num_candidates, [*notes, *_near(rows)], list(differences), shown)


def _row(sums: Sums, protocol: str, method: str, categories: Sequence[str], columns: Sequence[str]) -> Row:
    means: dict[str, list[float | None]] = {}
    for metric in columns:
        values = [sums.values.get(metric, {}).get((protocol, method, name), (0.0, 0)) for name in categories]
        total = torch.tensor([value for value, _ in values], dtype=torch.double)
        each, average = category_means(total, torch.tensor([count for _, count in values]))
        means[metric] = [None if math.isnan(value) else value for value in (*each.tolist(), float(average))]
    cells = [each for (*row, _), each in sums.counts.items() if row == [protocol, method]]
    pairs, undefined, expressible, near = (
        sum(cell[name] for cell in cells) for name in ("pairs", "undefined", "expressible", "near")
    )
    return Row(protocol, method, means, pairs, undefined, expressible / max(pairs - undefined, 1), near)


def _near(rows: Sequence[Row]) -> list[str]:
    """A note on pairs so close to the hit threshold that rounding may decide."""
    counted = [f"{row.method} ({row.protocol}) {row.near}" for row in rows if row.near and "common" not in row.protocol]
    return (
        [f"Hits that rounding may decide (NRA within {NEAR} of {THRESHOLD}): {', '.join(counted)}."] if counted else []
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def header(table: Table) -> list[str]:
    """Column names, starting with the method."""
    names = [*table.categories, "avg"]
    titles = (f"{title_of(column)} {name}" for column in table.columns for name in names)
    return ["method", *titles, "pairs", "undefined", "coverage"]


def _body(row: Row, columns: Sequence[str]) -> list[str]:
    values = [_cell(value) for column in columns for value in row.means[column]]
    return [row.method, *values, _count(row.pairs), _count(row.undefined), _cell(row.coverage)]


def _blocks(table: Table) -> Iterable[tuple[str, list[Row]]]:
    """Title and rows of every protocol that has rows."""
    for protocol, title in BLOCKS.items():
        rows = [row for row in table.rows if row.protocol == protocol]
        if rows:
            yield title.format(table.num_candidates), rows


def to_text(table: Table, width: int | None = COLUMNS) -> str:
    """Format for a terminal: one block per protocol, one group of columns per metric.

    Args:
        table: the table.
        width: columns of the terminal; groups that do not fit stand below the others. ``None``: no limit.
    """
    label = max([len(row.method) for row in table.rows] + [12])
    lines = []
    for title, rows in _blocks(table):
        lines += ["", title]
        columns: list[list[str]] = []
        for group in _groups(table, rows):
            if columns and width is not None and label + sum(len(c[0]) for c in [*columns, group]) > width:
                lines += [*_beside(label, rows, columns), ""]
                columns = []
            columns.append(group)
        lines += _beside(label, rows, columns)
    below = _below(table)
    if width is not None:
        below = [part for line in below for part in textwrap.wrap(line, width, subsequent_indent="  ") or [""]]
    return "\n".join([*lines, "", *below, ""]).lstrip("\n")


def _groups(table: Table, rows: Sequence[Row]) -> Iterable[list[str]]:
    """Groups of columns, each with the lines of its two headings and of the rows: one per metric, and the counts."""
    names = [*table.categories, "avg"]
    wide = max(6, *(len(name[:8]) + 1 for name in names))
    for column in table.columns:
        size = max(wide * len(names), len(title_of(column)))
        heading = [f" |{title_of(column):^{size}}", " |" + "".join(f"{name[:8]:>{wide}}" for name in names).rjust(size)]
        yield heading + [" |" + "".join(f"{_cell(v):>{wide}}" for v in row.means[column]).rjust(size) for row in rows]
    counts = [f"{_count(row.pairs):>7}{_count(row.undefined):>7}{_cell(row.coverage):>10}" for row in rows]
    yield [" |" + " " * 24, " |  pairs  undef  coverage", *(f" |{each}" for each in counts)]


def _beside(label: int, rows: Sequence[Row], columns: Sequence[list[str]]) -> list[str]:
    """The lines of groups of columns, beside the names of the rows."""
    names = ["", "", *(row.method for row in rows)]
    return [(f"{name:<{label}}" + "".join(parts)).rstrip() for name, *parts in zip(names, *columns, strict=True)]


def _below(table: Table) -> list[str]:
    """Differences and notes, a line each."""
    lines = []
    if table.differences:
        lines.append("Difference in NRA avg, 95 % interval of a paired bootstrap over images:")
        lines += [f"  {difference.protocol:7} {difference}" for difference in table.differences] + [""]
    return lines + table.notes


def to_markdown(table: Table) -> str:
    """Format as Markdown."""
    names = header(table)
    lines = []
    for title, rows in _blocks(table):
        lines += [f"**{title}**", "", f"| {' | '.join(names)} |"]
        lines.append("|---|" + "---:|" * (len(names) - 1))
        lines += [f"| {' | '.join(_body(row, table.columns))} |" for row in rows] + [""]
    if table.differences:
        lines += ["| NRA avg | difference | low (95 %) | high |", "|---|---:|---:|---:|"]
        for d in table.differences:
            lines.append(f"| {d.protocol}: {d.method} - {d.other} | {d.value:+.3f} | {d.low:+.3f} | {d.high:+.3f} |")
        lines.append("")
    return "\n".join([*lines, *table.notes, ""])


def to_csv(table: Table) -> str:
    """Format as CSV: full precision, empty fields for missing values."""
    rows = [["protocol", *header(table)]]
    for row in table.rows:
        values = [*(v for column in table.columns for v in row.means[column]), row.pairs, row.undefined, row.coverage]
        rows.append([row.protocol, row.method, *("" if v is None else repr(v) for v in values)])
    return csv_text(rows)


def to_latex(table: Table) -> str:
    """Format as LaTeX: one tabular (package booktabs), one block per protocol."""
    names = [*table.categories, "Avg."]
    count = len(names)
    lines = [rf"\begin{{tabular}}{{l{('r' * count) * len(table.columns)}}}", r"\toprule"]
    titles = (rf"\multicolumn{{{count}}}{{c}}{{{_escaped(title_of(column))}}}" for column in table.columns)
    lines.append(" & " + " & ".join(titles) + r" \\")
    lines.append("Method & " + " & ".join(_escaped(name) for name in names * len(table.columns)) + r" \\")
    for title, rows in _blocks(table):
        lines += [r"\midrule", rf"\multicolumn{{{count * len(table.columns) + 1}}}{{l}}{{{_escaped(title)}}} \\"]
        for row in rows:
            values = (_cell(value) for column in table.columns for value in row.means[column])
            lines.append(f"{_escaped(row.method)} & {' & '.join(values)} \\\\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "&%$#_{}" else letter for letter in text)


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": to_text,
    "wide": partial(to_text, width=None),
    "md": to_markdown,
    "csv": to_csv,
    "latex": to_latex,
}
