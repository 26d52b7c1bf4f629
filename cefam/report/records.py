"""Per-pair records: one line per (pair, method, protocol). They are the source of every table."""

import csv
import heapq
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from cefam.concepts import ConceptSet
from cefam.errors import CefamError
from cefam.evaluator import PairValues
from cefam.metrics.table import AREAS, METRICS, SECONDARY

# Maps come in single precision: more digits than these depend on the order in which a processor adds.
DIGITS = 9


BEFORE = ("image", "mask", "label", "word", "category", "method", "protocol")
AFTER = ("stage", "expressible")


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
    """Records as dicts; :func:`values` as floats, NaN where undefined, and ``expressible`` as a bool.

    Raises:
        CefamError: where the file lacks a column, or holds something else.
    """
    with Path(path).open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        missing = sorted(set(columns()) - set(reader.fieldnames or ()))
        if missing:
            raise CefamError(f"{path} is not a file of records: it has no column {', '.join(map(repr, missing))}.")
        numeric = values([name for name in SECONDARY if name in (reader.fieldnames or ())])
        for row in reader:
            try:
                numbers: dict[str, Any] = {name: float(row[name]) for name in numeric}
            except (TypeError, ValueError) as error:
                raise CefamError(f"{path}, line {reader.line_num}: {error}.") from error
            yield {**row, **numbers, "expressible": row["expressible"] == "1"}


def with_common(records: Iterable[dict[str, Any]], left_out: set[int]) -> Iterator[dict[str, Any]]:
    """The records, and once more, under the protocol "... common", those of pairs that all methods can express.

    Args:
        records: of any methods.
        left_out: see :func:`inexpressible_pairs`; none: nothing is added.
    """
    for record in records:
        yield record
        if left_out and pair_of(record) not in left_out:
            yield {**record, "protocol": f"{record['protocol']} common"}


def inexpressible_pairs(records: Iterable[dict[str, Any]]) -> set[int]:
    """Pairs, as numbers, that some method cannot express."""
    return {pair_of(record) for record in records if not record["expressible"]}


def pair_of(record: dict[str, Any]) -> int:
    """A number for a record's pair, the same within a process."""
    return hash((record["image"], record["mask"], record["label"]))
