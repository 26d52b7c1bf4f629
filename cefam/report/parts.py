"""Intermediate results of an evaluation: one file per batch, written atomically, so that a stopped evaluation can resume."""

import csv
import io
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cefam.errors import CefamError
from cefam.io.files import replacing
from cefam.io.passes import Pass
from cefam.report import examples
from cefam.report.examples import Example

FOLDER = ".parts"
RECORDS, OUTSIDE, EXAMPLE, PRESENCE = "records", "outside", "example.", "presence."


def reporting(output: Path) -> Path:
    """Marker file of an output folder: the report is being written, so the results in it may be incomplete."""
    return output / FOLDER / "reporting"


class Parts:
    """The parts of an evaluation, one file per batch.

    Args:
        work: the pass that writes them.
    """

    def __init__(self, work: Pass) -> None:
        self.work = work

    def paths(self) -> list[Path]:
        """The finished parts of all processes, in order."""
        return self.work.files()

    @staticmethod
    def write(
        path: Path,
        rows: Iterable[Sequence[Any]],
        outside: int,
        presence: Mapping[str, np.ndarray],
        kept: Sequence[Example],
    ) -> None:
        """Write the part of a batch."""
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        arrays: dict[str, Any] = {
            RECORDS: np.frombuffer(text.getvalue().encode(), np.uint8),
            OUTSIDE: np.array(outside),
            **{PRESENCE + name: value for name, value in presence.items()},
            **{EXAMPLE + name: value for name, value in (examples.to_arrays(kept) if kept else {}).items()},
        }
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    def _read(self, wanted: str) -> Iterator[dict[str, np.ndarray]]:
        return (read_part(path, wanted) for path in self.paths())

    def records(self) -> Iterator[list[str]]:
        """The records of all batches, in order."""
        for stored in self._read(RECORDS):
            yield from records_of(stored)

    def outside(self) -> int:
        """Number of pairs whose label is not in the concept set."""
        return sum(int(stored[OUTSIDE]) for stored in self._read(OUTSIDE))

    def presence(self) -> list[dict[str, np.ndarray]]:
        """Presence scores of the photographs, batch by batch."""
        return list(self._read(PRESENCE))

    def examples(self, count: int) -> list[Example]:
        """The first ``count`` examples."""
        found: list[Example] = []
        for arrays in self._read(EXAMPLE):
            found += examples.from_arrays(arrays) if arrays else []
            if len(found) >= count:
                break
        return found[:count]

    def clear(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.work.folder, ignore_errors=True)


def read_part(path: Path, wanted: str) -> dict[str, np.ndarray]:
    """The arrays of a part whose names begin with ``wanted``; other arrays are not read.

    Raises:
        CefamError: if the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = {name: arrays[name] for name in arrays.files if name.startswith(wanted)}
        if wanted == RECORDS:
            stored[RECORDS].tobytes().decode()
        elif wanted == OUTSIDE:
            int(stored[OUTSIDE])
    except Exception as error:  # zipfile and NumPy raise many types for a broken file
        raise CefamError(f"{path} cannot be read ({error}): remove it, and run `cefam evaluate` again.") from error
    return {name.removeprefix(wanted) or name: value for name, value in stored.items()}


def records_of(stored: Mapping[str, np.ndarray]) -> Iterator[list[str]]:
    """The records in the arrays of a part."""
    return csv.reader(io.StringIO(stored[RECORDS].tobytes().decode(), newline=""))
