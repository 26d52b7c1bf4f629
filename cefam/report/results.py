"""Results: tables and figures from a folder of records. No neural network is needed to regenerate them.

A folder of ``cefam evaluate`` holds ``records.csv`` and ``run.json`` (metadata), and the files derived from them:
``table.txt``, ``table.md``, ``table.csv``, ``differences.csv``. ``examples.npz`` holds the measured candidates of a few
pairs, and ``contact_sheet.png`` shows them.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Self

from cefam.errors import CefamError, MissingError, near
from cefam.io.files import csv_text, write_text
from cefam.io.reading import read_csv, read_description
from cefam.metrics.table import title_of
from cefam.report import bootstrap, examples, presence, records, tables
from cefam.report.contact_sheet import write_contact_sheet
from cefam.report.sums import Sums
from cefam.report.tables import Row, Table

RUN, RECORDS, EXAMPLES, SHEET = "run.json", "records.csv", "examples.npz", "contact_sheet.png"
FILES = (
    RECORDS, RUN, "table.txt", "table.md", "table.csv", "differences.csv", EXAMPLES, SHEET, presence.FILE, presence.LISTS,
)  # fmt: skip
EXPLANATION = (
    "Undefined: the mask is empty or fills the image. Coverage: share of pairs whose concept the method can express."
)


@dataclass(frozen=True)
class Run:
    """Metadata of an evaluation: methods and categories in the order of the tables, settings, and notes for the reader."""

    methods: list[str]
    categories: list[str]
    num_candidates: int
    preset: str
    notes: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    format: str = "cefam-results"
    version: int = 2

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read the metadata of a results folder."""
        path = Path(folder) / RUN
        for name in (RUN, RECORDS):
            if not (Path(folder) / name).is_file():
                raise MissingError(f"{folder} holds no results (no {name}): name a folder that `cefam evaluate` made.")
        return read_description(path.read_bytes(), cls, path, "run `cefam evaluate` again")


def clear(folder: Path) -> None:
    """Remove the results in a folder."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def table_of(run: Run, read: Callable[[], Iterator[records.Block]], columns: Sequence[str] = ()) -> Table:
    """Compute the table of a run in two passes over its records, without holding them in memory."""
    sums = Sums.of(read(), records.inexpressible_pairs(read()))
    compared = bootstrap.differences(sums, order=run.methods)
    table = tables.summarize(sums, run.categories, run.num_candidates, run.notes, compared, columns)
    if not table.rows:
        raise CefamError("No pair was measured: no label in the shards is a number of the concept set.")
    return table


def write(folder: Path, run: Run, table: Table, kept: Sequence[examples.Example]) -> None:
    """Write the metadata, the tables, the examples and the contact sheet."""
    write_text(folder / RUN, json.dumps(asdict(run), indent=1))
    write_tables(folder, table)
    if kept:
        examples.save(kept, folder / EXAMPLES)
        write_contact_sheet(kept, folder / SHEET)


def write_tables(folder: Path, table: Table) -> None:
    """Write ``table.txt``, ``table.md``, ``table.csv`` and ``differences.csv``."""
    for name, text in (
        ("table.txt", tables.to_text(table)),
        ("table.md", tables.to_markdown(table)),
        ("table.csv", tables.to_csv(table)),
        ("differences.csv", csv_text([bootstrap.Difference._fields, *table.differences])),
    ):
        write_text(folder / name, text)


def remake(folder: str | Path) -> Table:
    """Regenerate the tables and the contact sheet of a folder from its records and examples."""
    folder = Path(folder)
    table = joined([folder])
    write_tables(folder, table)
    if (folder / EXAMPLES).is_file():
        write_contact_sheet(examples.load(folder / EXAMPLES), folder / SHEET)
    return table


def joined(folders: Sequence[str | Path], columns: Sequence[str] = ()) -> Table:
    """Combine several runs in one table; a method that occurs in several runs is named "run: method".

    Differences are computed only between methods measured on the same images.
    """
    runs, prefixes = [Run.read(folder) for folder in folders], _prefixes(folders)
    first = runs[0]
    for folder, run in zip(folders, runs, strict=True):
        if (run.preset, run.num_candidates) != (first.preset, first.num_candidates):
            raise CefamError(
                f"{folder} was measured with preset {run.preset} and {run.num_candidates} candidate(s), {folders[0]} with "
                f"{first.preset} and {first.num_candidates}: such rows cannot be compared in one table."
            )
    counts = Counter(method for run in runs for method in run.methods)
    names = [
        {name: name if counts[name] == 1 else f"{prefix}: {name}" for name in run.methods}
        for prefix, run in zip(prefixes, runs, strict=True)
    ]

    def every() -> Iterator[records.Block]:
        for folder, named in zip(folders, names, strict=True):
            yield from records.blocks(Path(folder) / RECORDS, named)

    categories = list(dict.fromkeys(name for run in runs for name in run.categories))
    notes = list(dict.fromkeys(note for run in runs for note in run.notes))
    order = [name for named in names for name in named.values()]
    return table_of(replace(first, methods=order, categories=categories, notes=notes), every, columns)


def _prefixes(folders: Sequence[str | Path]) -> list[str]:
    """Names of the folders: the shortest path suffixes that distinguish them."""
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise CefamError(f"A folder is named twice: {', '.join(map(str, folders))}.")
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(paths):
        length += 1
    return ["/".join(path.parts[-length:]) for path in paths]


def with_published(table: Table, name: str) -> Table:
    """Add published numbers below each block of a table.

    Args:
        table: the measured table.
        name: one of the paper's tables ("table1/resnet50"), or a CSV file with the columns of ``table.csv``.
    """
    shipped = Path(str(files("cefam") / "data" / "published.csv"))
    path = Path(name) if Path(name).is_file() else shipped
    rows = [row for _, row in read_csv(path, ("protocol", "method"))[1]]
    if path == shipped:
        known = list(dict.fromkeys(row["table"] for row in rows))
        rows = [row for row in rows if row["table"] == name]
        if not rows:
            raise CefamError(
                f"There is no published table {name!r}.{near(name, known, 0.4)} There are {', '.join(known)}."
            )
    try:
        source = "paper" if path == shipped else "published"
        added = [_published(row, table.categories, table.columns, source) for row in rows]
    except ValueError as error:
        raise CefamError(f"{path} does not hold the numbers of a table.csv ({error}).") from error
    if all(value is None for row in added for values in row.means.values() for value in values):
        raise CefamError(f"{path} does not have the columns of table.csv (as 'NRA avg').")
    every = [*table.rows, *added]
    every.sort(key=lambda row: list(tables.BLOCKS).index(row.protocol))
    note = f"Published numbers ({name if path == shipped else path.name}) were measured on other images or with other weights."
    return replace(table, rows=every, notes=[*table.notes, note])


def _published(row: dict[str, str], categories: Sequence[str], columns: Sequence[str], source: str) -> Row:
    means: dict[str, list[float | None]] = {}
    for metric in columns:
        cells = (row.get(f"{title_of(metric)} {name}".lower(), "") for name in (*categories, "avg"))
        means[metric] = [float(cell) if cell else None for cell in cells]
    if row["protocol"] not in tables.BLOCKS:
        raise ValueError(f"the protocol {row['protocol']!r} is not one of {', '.join(tables.BLOCKS)}")
    return Row(row["protocol"], f"{row['method']} ({source})", means)
