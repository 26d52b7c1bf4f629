"""The parts of an evaluation that is not finished: a file per batch, complete or not there, so that a stopped one can go on."""

import csv
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cefam.errors import CefamError
from cefam.files import replacing, write_text
from cefam.report import examples
from cefam.report.examples import Example

FOLDER, RUN = ".parts", "run.json"
RECORDS, OUTSIDE, EXAMPLE, PRESENCE = "records", "outside", "example.", "presence."


class Parts:
    """The parts in the output folder of an evaluation.

    Args:
        output: the folder.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output / FOLDER
        self.reporting = (
            self.folder / "reporting"
        )  # there: the results beside the parts are made of them, and may be incomplete

    def begin(self, run: Any) -> None:
        """Keep the parts of this run, and remove those of others.

        Args:
            run: what is measured, in plain types; ``None``: it is not known, so nothing is kept.
        """
        stored, mine = self.folder / RUN, json.dumps(run, default=str, sort_keys=True)
        if run is None or not stored.is_file() or stored.read_text() != mine:
            self.clear()
            write_text(stored, mine)

    def done(self) -> set[int]:
        """Numbers of the batches that are measured."""
        return {int(path.stem) for path in self._paths()}

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.npz"))

    def write(
        self,
        number: int,
        rows: Iterable[Sequence[Any]],
        outside: int,
        presence: Mapping[str, np.ndarray],
        kept: Sequence[Example],
    ) -> None:
        """Write the part of a batch.

        Args:
            number: of the batch.
            rows: its records.
            outside: how many of its pairs have a label that is not in the concept set.
            presence: scores of its photographs, by name.
            kept: its examples.
        """
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        arrays: dict[str, Any] = {
            RECORDS: np.frombuffer(text.getvalue().encode(), np.uint8),
            OUTSIDE: np.array(outside),
            **{PRESENCE + name: value for name, value in presence.items()},
            **{EXAMPLE + name: value for name, value in (examples.to_arrays(kept) if kept else {}).items()},
        }
        with replacing(self.folder / f"{number:08d}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    def _read(self, wanted: str) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of every batch whose names begin so; nothing else is read."""
        for path in self._paths():
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    stored = {name: arrays[name] for name in arrays.files if name.startswith(wanted)}
                if wanted == RECORDS:
                    stored[RECORDS].tobytes().decode()
                elif wanted == OUTSIDE:
                    int(stored[OUTSIDE])
            except Exception as error:  # zip and NumPy have many for a broken file
                raise CefamError(
                    f"{path} cannot be read ({error}): remove it, and run `cefam evaluate` again."
                ) from error
            yield {name.removeprefix(wanted) or name: value for name, value in stored.items()}

    def records(self) -> Iterator[list[str]]:
        """The records of all batches, in order."""
        for stored in self._read(RECORDS):
            yield from csv.reader(io.StringIO(stored[RECORDS].tobytes().decode(), newline=""))

    def outside(self) -> int:
        """How many pairs were left out."""
        return sum(int(stored[OUTSIDE]) for stored in self._read(OUTSIDE))

    def presence(self) -> list[dict[str, np.ndarray]]:
        """Scores of photographs, batch by batch."""
        return list(self._read(PRESENCE))

    def examples(self, count: int) -> list[Example]:
        """The first examples."""
        found: list[Example] = []
        for arrays in self._read(EXAMPLE):
            found += examples.from_arrays(arrays) if arrays else []
            if len(found) >= count:
                break
        return found[:count]

    def clear(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)
