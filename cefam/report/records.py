"""Per-pair records: one line per (pair, method, protocol). They are the source of every table."""

import csv
import heapq
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np

from cefam.concepts.sets import ConceptSet
from cefam.errors import CefamError
from cefam.evaluation.evaluator import PairValues
from cefam.metrics.table import AREAS, METRICS, SECONDARY

# Maps are in single precision: further digits depend on the order of summation.
DIGITS = 9


BEFORE = ("image", "mask", "label", "word", "category", "method", "protocol")
AFTER = ("stage", "expressible")
PAIR = ("image", "mask", "label")


def values(secondary: Sequence[str] = ()) -> tuple[str, ...]:
    """Numeric columns: the metrics and the areas from which they are computed."""
    return (*METRICS, *secondary, *AREAS)


def columns(secondary: Sequence[str] = ()) -> tuple[str, ...]:
    """All columns."""
    return (*BEFORE, *values(secondary), *AFTER)


def rows_of(
    measured: PairValues,
    ids: Sequence[str],
    categories: Sequence[str],
    concepts: ConceptSet,
    secondary: Sequence[str] = (),
) -> Iterator[list[Any]]:
    """Yield the records of one batch, with columns as in :func:`columns`; a category that is not measured is ''."""
    found = measured.found
    images, places, labels = found.pairs.image.tolist(), found.place.tolist(), found.label.tolist()
    category = found.category.tolist()
    words = [concepts.concepts[c].word for c in found.pairs.concept.tolist()]
    areas = {"auc_high": measured.auc_high, "auc_low": measured.auc_low}
    for method, protocols in measured.values.items():
        for protocol, of_method in protocols.items():
            numbers = {**of_method.metrics, "auc": of_method.auc, **areas}
            texts = [[f"{value:.{DIGITS}g}" for value in numbers[name].tolist()] for name in values(secondary)]
            rest = [of_method.stage.tolist(), of_method.expressible.int().tolist()]
            for row, cells in enumerate(zip(*texts, *rest, strict=True)):
                name = categories[category[row]] if category[row] >= 0 else ""
                yield [ids[images[row]], places[row], labels[row], words[row], name, method, protocol, *cells]


def merge(lines: Iterator[list[str]], path: Path, secondary: Sequence[str] = (), run_length: int = 500_000) -> None:
    """Write records to one file, sorted by image, mask and label, so that it does not depend on the number of processes.

    The sort is stable: the methods of a pair keep their order. It is an external merge sort, since Broden has 11 million
    lines.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, ExitStack() as stack:
        runs: list[Path] = []
        while rows := sorted(islice(lines, run_length), key=_place):
            runs.append(Path(folder) / str(len(runs)))
            with runs[-1].open("w", newline="", encoding="utf-8") as out:
                csv.writer(out).writerows(rows)
        sources: Any = [csv.reader(stack.enter_context(run.open(newline="", encoding="utf-8"))) for run in runs]
        with path.open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(columns(secondary))
            writer.writerows(heapq.merge(*sources, key=_place))


def _place(row: Any) -> tuple[str, int, int]:
    return row[0], int(row[1]), int(row[2])


def read(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield records as dicts: :func:`values` as floats, NaN where undefined, and ``expressible`` as a bool.

    :func:`blocks` is faster for large files.

    Raises:
        CefamError: if a column is missing or a value cannot be parsed.
    """
    with Path(path).open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        numeric = _numeric(reader.fieldnames or (), path)
        for row in reader:
            try:
                numbers: dict[str, Any] = {name: float(row[name]) for name in numeric}
            except (TypeError, ValueError) as error:
                raise CefamError(f"{path}, line {reader.line_num}: {error}.") from error
            yield {**row, **numbers, "expressible": row["expressible"] == "1"}


@dataclass(frozen=True)
class Block:
    """A block of records by column: ``text`` as lists, ``numbers`` (:func:`values`) and ``expressible`` as arrays."""

    text: dict[str, list[str]]
    numbers: dict[str, np.ndarray]
    expressible: np.ndarray

    def pairs(self) -> np.ndarray:
        """A hash of each record's pair, consistent within a process."""
        return np.fromiter(
            map(hash, zip(*(self.text[name] for name in PAIR), strict=True)), np.int64, len(self.expressible)
        )

    def where(self, rows: np.ndarray) -> "Block":
        """The records for which ``rows`` is true."""
        numbers = {name: column[rows] for name, column in self.numbers.items()}
        return Block(
            {name: list(compress(column, rows)) for name, column in self.text.items()}, numbers, self.expressible[rows]
        )


def blocks(path: str | Path, methods: Mapping[str, str] | None = None, size: int = 5_000) -> Iterator[Block]:
    """Yield records in blocks, by column.

    Args:
        path: the file.
        methods: new method names, by old name.
        size: records per block.

    Raises:
        CefamError: if a column is missing or a line cannot be parsed.
    """
    renamed = methods or {}
    with Path(path).open(newline="", encoding="utf-8") as lines:
        reader = csv.reader(lines)
        header = next(reader, [])
        numeric = _numeric(header, path)
        first = 2
        while rows := list(islice(reader, size)):
            if any(len(row) != len(header) for row in rows):
                wrong = next(place for place, row in enumerate(rows) if len(row) != len(header))
                raise CefamError(
                    f"{path}, line {first + wrong}: {len(rows[wrong])} values, the header has {len(header)}."
                )
            columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
            numbers = {name: _floats(columns[name], path, first) for name in numeric}
            text = {name: columns[name] for name in BEFORE}
            text["method"] = [renamed.get(name, name) for name in text["method"]]
            yield Block(text, numbers, np.array(columns["expressible"]) == "1")
            first += len(rows)


def blocks_of(found: Sequence[dict[str, Any]]) -> Iterator[Block]:
    """Convert records from :func:`read` to a block."""
    if found:
        numbers = {name: np.array([row[name] for row in found]) for name in values(list(SECONDARY)) if name in found[0]}
        text = {name: [str(row.get(name, "")) for row in found] for name in BEFORE}
        yield Block(text, numbers, np.array([bool(row["expressible"]) for row in found]))


def _floats(column: list[str], path: str | Path, first: int) -> np.ndarray:
    try:
        return np.fromiter(map(float, column), float, len(column))
    except ValueError:
        for line, value in enumerate(column, start=first):
            try:
                float(value)
            except ValueError as error:
                raise CefamError(f"{path}, line {line}: {error}.") from error
        raise


def _numeric(header: Sequence[str], path: str | Path) -> tuple[str, ...]:
    """Numeric columns of a file."""
    missing = sorted(set(columns()) - set(header))
    if missing:
        raise CefamError(f"{path} is not a file of records: it has no column {', '.join(map(repr, missing))}.")
    return values([name for name in SECONDARY if name in header])


def inexpressible_pairs(found: Iterable[Block]) -> set[int]:
    """Hashes of the pairs that at least one method cannot express."""
    return {int(pair) for block in found for pair in block.where(~block.expressible).pairs()}
