"""Runs beside a table of the paper: row by row, with the difference, and the rows that are missing."""

import csv
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from cefam.errors import CefamError, near
from cefam.metrics.table import title_of
from cefam.report import results
from cefam.report.tables import Row, Table


def published_rows(name: str) -> list[dict[str, str]]:
    """The paper's rows of a table ("table1"), or of a part of one ("table1/resnet50").

    Raises:
        CefamError: for an unknown table.
    """
    with Path(str(files("cefam") / "data" / "published.csv")).open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    found = [row for row in rows if row["table"] == name or row["table"].startswith(f"{name}/")]
    if not found:
        known = sorted({part for row in rows for part in (row["table"], row["table"].partition("/")[0])})
        raise CefamError(f"The paper has no table {name!r}.{near(name, known, 0.4)} There are {', '.join(known)}.")
    return found


def compared(folders: Sequence[str | Path], name: str) -> str:
    """Our rows, the paper's, and the differences, as text.

    A run says which tables it reproduces (``model.reproduces``); a row of it belongs to the paper's row of the same method.

    Args:
        folders: of ``cefam evaluate``.
        name: a table of the paper.
    """
    runs = {table: folder for folder in folders for table in results.Run.read(folder).reproduces}
    rows = published_rows(name)
    every = list(dict.fromkeys(metric for row in rows for metric in _metrics(row)))
    tables: dict[str, Table] = {}
    lines, missing = [], []
    for row in rows:
        columns = [(metric, category) for metric in _metrics(row) for category in _categories(row, metric)]
        label = f"{row['table']}, {row['method']} ({row['protocol']})"
        ours = None
        if row["table"] in runs:
            folder = runs[row["table"]]
            if row["table"] not in tables:
                tables[row["table"]] = results.joined([folder], every)
            ours = _row_of(tables[row["table"]], row)
        if ours is None:
            missing.append(label)
            continue
        lines += ["", label, "  " + "".join(f"{f'{title_of(m)} {c}':>20}" for m, c in columns)]
        mine = [_value(tables[row["table"]], ours, metric, category) for metric, category in columns]
        theirs = [float(row[f"{title_of(metric)} {category}"]) for metric, category in columns]
        gaps = [None if a is None else a - b for a, b in zip(mine, theirs, strict=True)]
        for title, values, sign in (("ours", mine, ""), ("paper", theirs, ""), ("difference", gaps, "+")):
            cells = ("-" if value is None else f"{value:{sign}.3f}" for value in values)
            lines.append(f"  {title:10}" + "".join(f"{cell:>20}" for cell in cells)[10:])
    lines += [
        "",
        f"{name}: {len(rows) - len(missing)} of {len(rows)} rows of the paper.",
    ]
    lines += [f"Missing: {label}" for label in missing]
    return "\n".join([*lines, ""]).lstrip("\n")


def _metrics(row: dict[str, str]) -> list[str]:
    """Metrics that the paper gives in a row."""
    names = ("epg", "nra", "hit", "auc", "auc_high", "auc_low")
    return [name for name in names if _categories(row, name)]


def _categories(row: dict[str, str], metric: str) -> list[str]:
    names = ("object", "part", "color", "material", "avg")
    return [name for name in names if row.get(f"{title_of(metric)} {name}")]


def _row_of(table: Table, row: dict[str, str]) -> Row | None:
    found = (r for r in table.rows if (r.protocol, r.method) == (row["protocol"], row["method"]))
    return next(found, None)


def _value(table: Table, row: Row, metric: str, category: str) -> float | None:
    names = [*table.categories, "avg"]
    return row.means[metric][names.index(category)] if category in names else None
