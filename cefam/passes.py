"""A resumable pass over units of work: prepare and features are uses of it.

Every unit becomes one file. A journal in the folder records the input of each finished file, so a stopped pass continues where
it stopped, and redoes a file whose input has changed.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cefam.errors import CefamError, ExistsError
from cefam.files import locked, write_text

JOURNAL = "journal.json"


@dataclass(frozen=True)
class Unit:
    """Work that becomes one file.

    Args:
        file: its name in the folder.
        digest: identifies its input.
        size: how many steps of the progress bar it is worth.
        write: writes the file, completely or not at all, and returns the rest of its entry in the manifest, in plain types.
    """

    file: str
    digest: str
    size: int
    write: Callable[[Path], dict[str, Any]]


class Pass:
    """A pass that writes into a folder; a context manager, which locks the folder.

    Args:
        folder: where to; created.
        run: what is computed, in plain types; a folder that holds a pass of something else is refused.

    Raises:
        ExistsError: where the folder holds another pass, or another run is writing there.
        CefamError: where its journal is something else.
    """

    def __init__(self, folder: Path, run: Any) -> None:
        self.folder, self.journal = folder, folder / JOURNAL
        self.run = json.loads(json.dumps(run, default=str))
        self.done: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "Pass":
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(locked(self.folder))
            if not (self.journal.is_file() and self._taken_up()):
                write_text(self.journal, json.dumps({"run": self.run}) + "\n")
            self._lock = stack.pop_all()
        return self

    def _taken_up(self) -> bool:
        """Read the journal: what the pass is, then a line per finished file; the last line of a killed run may be cut.

        Returns:
            Whether it is of this pass; one of another pass that finished nothing does not matter.
        """
        first, *lines = self.journal.read_text().splitlines() or [""]
        try:
            run = json.loads(first)["run"]
        except (ValueError, KeyError, TypeError) as error:
            raise CefamError(f"{self.journal} is not a journal of cefam: name another folder, or remove it.") from error
        if run != self.run and lines:
            raise ExistsError(
                f"{self.folder} holds the work of a run with other inputs or options: name another folder, or remove it."
            )
        for line in lines:
            with suppress(ValueError):
                entry = json.loads(line)
                self.done[entry["about"]["file"]] = entry
        return bool(run == self.run)

    def __exit__(self, *error: Any) -> None:
        self._lock.close()

    def over(self, units: Iterable[Unit], title: str, total: int) -> Iterator[dict[str, Any]]:
        """Do what is not done yet, with a progress bar; gives the entry of every unit, in order.

        Args:
            units: in order.
            title: of the bar.
            total: sum of the units' sizes.
        """
        from rich.progress import Progress

        with Progress() as progress:
            bar = progress.add_task(title, total=total)
            for unit in units:
                path = self.folder / unit.file
                known = self.done.get(unit.file)
                intact = known and path.is_file() and path.stat().st_size == known["bytes"]
                if not (known and intact and known["digest"] == unit.digest):
                    about = {"file": unit.file, **unit.write(path)}
                    known = {"digest": unit.digest, "bytes": path.stat().st_size, "about": about}
                    with self.journal.open("a", encoding="utf-8") as journal:
                        journal.write(json.dumps(known) + "\n")
                progress.advance(bar, unit.size)
                yield known["about"]

    def forget(self) -> None:
        """Remove the journal of a pass that is finished and never taken up again."""
        self.journal.unlink(missing_ok=True)
