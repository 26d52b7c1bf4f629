"""Intermediate results of an evaluation: one file per batch, written atomically, so that a stopped evaluation can resume."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cefam.errors import CefamError
from cefam.io.files import replacing
from cefam.report import examples
from cefam.report.examples import Example

T = TypeVar("T")
FOLDER = ".parts"
RECORDS, EXAMPLE, PRESENCE = "records", "example.", "presence."


def reporting(output: Path) -> Path:
    """Marker file of an output folder: the report is being written, so the results in it may be incomplete."""
    return output / FOLDER / "reporting"


def write_part(
    path: Path, rows: Iterable[Sequence[Any]], presence: Mapping[str, np.ndarray], kept: Sequence[Example]
) -> None:
    """Write the part of a batch: its records, presence scores and examples."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    arrays: dict[str, Any] = {
        RECORDS: np.frombuffer(text.getvalue().encode(), np.uint8),
        **{PRESENCE + name: value for name, value in presence.items()},
        **{EXAMPLE + name: value for name, value in (examples.to_arrays(kept) if kept else {}).items()},
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def records_in(parts: Iterable[Path]) -> Iterator[list[str]]:
    """The records of these parts, in order."""
    for text in _read(parts, lambda arrays: arrays[RECORDS].tobytes().decode()):
        yield from csv.reader(io.StringIO(text, newline=""))


def presence_in(parts: Iterable[Path]) -> list[dict[str, np.ndarray]]:
    """Presence scores of the photographs, batch by batch."""
    return list(_read(parts, lambda arrays: _named(arrays, PRESENCE)))


def examples_in(parts: Iterable[Path], count: int) -> list[Example]:
    """The first ``count`` examples."""

    def of_part(arrays: Mapping[str, np.ndarray]) -> list[Example]:
        kept = _named(arrays, EXAMPLE)
        return examples.from_arrays(kept) if kept else []

    return list(islice(chain.from_iterable(_read(parts, of_part)), count))


def _named(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}


def _read(parts: Iterable[Path], take: Callable[[Mapping[str, np.ndarray]], T]) -> Iterator[T]:
    """What ``take`` makes of the arrays of each part."""
    for path in parts:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = take(arrays)
        except Exception as error:  # zipfile and NumPy raise many types for a broken file
            raise CefamError(f"{path} cannot be read ({error}): remove it, and run `cefam evaluate` again.") from error
        yield found
