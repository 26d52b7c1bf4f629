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

# Maps come in single precision: more digits than these depend on the order in which a processor adds.
DIGITS = 9


BEFORE = ("image", "mask", "label", "word", "category", "method", "protocol")
AFTER = ("stage", "expressible")
PAIR = ("image", "mask", "label")


def values(secondary: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns that hold numbers: the metrics, and the areas that they come from."""
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
    """The records of one batch, in the order of :func:`columns`; a category that is not measured is ''."""
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
    """Write records into one sorted file, the same for any number of processes.

    By image, mask and label; the methods of a pair keep their order. Sorted in runs on disk, since Broden has 11 million
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
    """Records as dicts, one by one; :func:`values` as floats, NaN where undefined, and ``expressible`` as a bool.

    :func:`blocks` reads many of them faster.

    Raises:
        CefamError: where the file lacks a column, or holds something else.
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
    """Some records by column: ``text`` as lists, ``numbers`` (:func:`values`) and ``expressible`` as arrays."""

    text: dict[str, list[str]]
    numbers: dict[str, np.ndarray]
    expressible: np.ndarray

    def pairs(self) -> np.ndarray:
        """A number for each record's pair, the same within a process."""
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
    """Records by column, some at a time, as fast as they can be parsed.

    Args:
        path: the file.
        methods: new names of methods.
        size: records of a block.

    Raises:
        CefamError: where the file lacks a column, or holds something else, with the line.
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
    """Records that :func:`read` gave, by column."""
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
    """The columns of numbers among those of a file.

    Raises:
        CefamError: where it lacks one.
    """
    missing = sorted(set(columns()) - set(header))
    if missing:
        raise CefamError(f"{path} is not a file of records: it has no column {', '.join(map(repr, missing))}.")
    return values([name for name in SECONDARY if name in header])


def inexpressible_pairs(found: Iterable[Block]) -> set[int]:
    """Pairs, as numbers, that some method cannot express."""
    return {int(pair) for block in found for pair in block.where(~block.expressible).pairs()}
