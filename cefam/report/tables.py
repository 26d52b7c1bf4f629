"""Tables of region metrics: text, Markdown, CSV; top-1 first, then the block in which the ground truth chose."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cefam.evaluator import METRICS
from cefam.files import write_text
from cefam.report.bootstrap import Difference
from cefam.report.records import Cell

TITLES = {"epg": "EPG", "nra": "NRA", "nra_calibrated": "NRA calibrated", "hit": "Hit Rate"}
BLOCKS = {
    "top1": "Top-1: each method's own first choice",
    "oracle": "Oracle: of at most {} candidates, the one with the best NRA against the ground truth",
}


@dataclass(frozen=True)
class Row:
    """One method under one protocol; ``means[metric]`` has one value per category and their mean, ``None`` where empty."""

    protocol: str
    method: str
    means: dict[str, list[float | None]]
    pairs: int
    undefined: int
    coverage: float


@dataclass(frozen=True)
class Table:
    """Rows in order, the categories of their columns, and what stands below: differences in NRA avg, and notes."""

    categories: list[str]
    rows: list[Row]
    num_candidates: int
    notes: list[str]
    differences: list[Difference] = field(default_factory=list)


def summarize(
    records: Iterable[dict[str, Any]],
    categories: Sequence[str],
    num_candidates: int,
    notes: Sequence[str] = (),
    differences: Sequence[Difference] = (),
) -> Table:
    """Average records per protocol, method and category; "avg" is the unweighted mean over categories (Table 1)."""
    cells: dict[tuple[str, str], dict[str, Cell]] = {}
    for record in records:
        row = cells.setdefault((record["protocol"], record["method"]), {})
        if record["category"]:
            row.setdefault(record["category"], Cell()).add(record)
    present = [name for name in categories if any(name in row for row in cells.values())]
    rows = [_row(protocol, method, row, present) for (protocol, method), row in cells.items()]
    rows.sort(key=lambda row: list(BLOCKS).index(row.protocol))  # stable: methods keep their order
    return Table(present, rows, num_candidates, list(notes), list(differences))


def _row(protocol: str, method: str, cells: dict[str, Cell], categories: Sequence[str]) -> Row:
    means: dict[str, list[float | None]] = {}
    for metric in METRICS:
        values = [cells[name].mean(metric) if name in cells else None for name in categories]
        known = [value for value in values if value is not None]
        means[metric] = [*values, sum(known) / len(known) if known else None]
    pairs = sum(cell.pairs for cell in cells.values())
    undefined = sum(cell.undefined for cell in cells.values())
    expressible = sum(cell.expressible for cell in cells.values())
    return Row(protocol, method, means, pairs, undefined, expressible / max(pairs - undefined, 1))


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _header(table: Table) -> list[str]:
    names = [*table.categories, "avg"]
    return ["method", *(f"{TITLES[m]} {n}" for m in METRICS for n in names), "pairs", "undefined", "coverage"]


def _body(row: Row) -> list[str]:
    values = [_cell(value) for metric in METRICS for value in row.means[metric]]
    return [row.method, *values, str(row.pairs), str(row.undefined), f"{row.coverage:.3f}"]


def to_text(table: Table) -> str:
    """For a terminal: one block per protocol, one group of columns per metric."""
    names = [*table.categories, "avg"]
    label = max([len(row.method) for row in table.rows] + [12])
    width = max(6, *(len(name[:8]) + 1 for name in names))
    lines = []
    for protocol, title in BLOCKS.items():
        rows = [row for row in table.rows if row.protocol == protocol]
        if not rows:
            continue
        lines += ["", title.format(table.num_candidates)]
        lines.append(" " * label + "".join(f" |{TITLES[m]:^{width * len(names)}}" for m in METRICS) + " |")
        group = "".join(f"{name[:8]:>{width}}" for name in names)
        lines.append(f"{'':<{label}}" + f" |{group}" * len(METRICS) + " |  pairs  undef  coverage")
        for row in rows:
            values = "".join(
                " |" + "".join(f"{_cell(value):>{width}}" for value in row.means[metric]) for metric in METRICS
            )
            lines.append(f"{row.method:<{label}}{values} |{row.pairs:>7}{row.undefined:>7}{row.coverage:>10.3f}")
    return "\n".join([*lines, "", *_below(table), ""]).lstrip("\n")


def _below(table: Table) -> list[str]:
    """Differences and notes, a line each."""
    lines = []
    if table.differences:
        lines.append("Difference in NRA avg, 95 % interval of a paired bootstrap over images:")
        lines += [f"  {difference.protocol:7} {difference}" for difference in table.differences] + [""]
    return lines + table.notes


def to_markdown(table: Table) -> str:
    """For a README."""
    header = _header(table)
    lines = []
    for protocol, title in BLOCKS.items():
        rows = [row for row in table.rows if row.protocol == protocol]
        if rows:
            lines += [f"**{title.format(table.num_candidates)}**", "", f"| {' | '.join(header)} |"]
            lines.append("|---|" + "---:|" * (len(header) - 1))
            lines += [f"| {' | '.join(_body(row))} |" for row in rows] + [""]
    if table.differences:
        lines += ["| NRA avg | difference | low (95 %) | high |", "|---|---:|---:|---:|"]
        for d in table.differences:
            lines.append(f"| {d.protocol}: {d.method} - {d.other} | {d.value:+.3f} | {d.low:+.3f} | {d.high:+.3f} |")
        lines.append("")
    return "\n".join([*lines, *table.notes, ""])


def to_csv(table: Table) -> str:
    """For programs: full precision, an empty field where there is no pair."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["protocol", *_header(table)])
    for row in table.rows:
        values = ["" if v is None else repr(v) for metric in METRICS for v in row.means[metric]]
        writer.writerow([row.protocol, row.method, *values, row.pairs, row.undefined, repr(row.coverage)])
    return out.getvalue()


def differences_to_csv(table: Table) -> str:
    """The differences in full precision."""
    out = io.StringIO()
    csv.writer(out).writerows([Difference._fields, *table.differences])
    return out.getvalue()


def write_tables(table: Table, folder: Path) -> None:
    """Write ``table.txt``, ``table.md``, ``table.csv`` and ``differences.csv``."""
    for name, render in (
        ("table.txt", to_text),
        ("table.md", to_markdown),
        ("table.csv", to_csv),
        ("differences.csv", differences_to_csv),
    ):
        write_text(folder / name, render(table))
