"""Resumable passes over units of work, used by the commands that write many files.

Each unit produces one file. A journal in the folder records the input of each finished file, so a stopped pass can be resumed,
and files whose input has changed are redone. Several processes can share a pass: each does every n-th unit, writes its own
journal and reads all journals, so a pass can be resumed with another number of processes.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from uuid import uuid4

from cefam.errors import CefamError, ExistsError
from cefam.io.files import locked, write_text
from cefam.io.identity import differing

JOURNAL = "journal.json"
PATIENCE = 10  # attempts, half a second apart, to see a new file on a network file system


@dataclass(frozen=True)
class Unit:
    """A unit of work that produces one file."""

    file: str  # its name in the folder
    digest: str  # identifies its input
    size: int  # number of progress-bar steps
    # writes the file atomically and returns the other fields of its manifest entry, in plain types
    write: Callable[[Path], dict[str, Any]]


class Pass:
    """A pass that writes into a folder; a context manager that locks the folder.

    Args:
        folder: output folder; created if missing.
        run: key of the computation (:func:`cefam.io.identity.identity`).
        share: rank of this process, and number of processes.
        replace: remove the files of a pass with another key instead of raising an error.
    """

    def __init__(self, folder: Path, run: Any, share: tuple[int, int] = (0, 1), replace: bool = False) -> None:
        self.folder, (self.rank, self.ranks) = folder, share
        self.journal = folder / (f"journal-{self.rank}.json" if self.rank else JOURNAL)
        self.run, self.replace = json.loads(json.dumps(run, default=str)), replace
        self.done: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "Pass":
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            if self.rank == 0:
                stack.enter_context(locked(self.folder))
            self._read()
            if not self._mine:
                write_text(self.journal, json.dumps({"run": self.run}) + "\n")
            if self.ranks > 1:
                require_shared(self.folder)
            self._lock = stack.pop_all()
        return self

    def _read(self) -> None:
        """Read all journals: the key, then one line per finished file; the last line of a killed run may be truncated.

        Journals of other passes without finished files are ignored.
        """
        self._mine = False
        for journal in sorted(self.folder.glob("journal*.json")):
            try:
                first, *lines = journal.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
            except FileNotFoundError:  # another process of this pass has removed it
                continue
            try:
                run = json.loads(first)["run"]
            except (ValueError, KeyError, TypeError) as error:
                raise CefamError(f"{journal} is not a journal of cefam: name another folder, or remove it.") from error
            if run != self.run and lines and self.replace:
                self._remove(journal, lines)
                continue
            if run != self.run and lines:
                raise ExistsError(
                    f"{self.folder} holds the work of a run with other inputs or options{differing(run, self.run)}: name another folder, "
                    f"or remove it."
                )
            self._mine |= journal == self.journal and run == self.run
            for line in lines:
                with suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    self.done[entry["about"]["file"]] = {key: entry[key] for key in ("digest", "bytes", "about")}

    def _remove(self, journal: Path, lines: Sequence[str]) -> None:
        """Remove a journal and the files it lists."""
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                # Only the file name: a damaged journal must not remove files outside the folder.
                (self.folder / Path(json.loads(line)["about"]["file"]).name).unlink(missing_ok=True)
        journal.unlink()

    def __exit__(self, *error: Any) -> None:
        self._lock.close()

    def do(self, unit: Unit) -> dict[str, Any]:
        """Do a unit unless it is already done; return its entry."""
        path = self.folder / unit.file
        return self.done[unit.file]["about"] if self._is_done(unit) else self._note(unit, unit.write(path))

    def _note(self, unit: Unit, written: dict[str, Any]) -> dict[str, Any]:
        """Write the entry of a finished unit into the journal."""
        entry = {"file": unit.file, **written}
        size = (self.folder / unit.file).stat().st_size
        self.done[unit.file] = {"digest": unit.digest, "bytes": size, "about": entry}
        with self.journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(self.done[unit.file]) + "\n")
        return entry

    def over(
        self, units: Iterable[Unit], title: str, total: int, pool: Executor | None = None
    ) -> Iterator[dict[str, Any]]:
        """Do this process's unfinished units with a progress bar; yield the entries of all its units, in order.

        Args:
            units: the units of all processes, in order.
            title: title of the progress bar.
            total: sum of the units' sizes.
            pool: worker processes; ``None``: this process does the work.
        """
        from rich.progress import Progress

        mine = list(islice(units, self.rank, None, self.ranks))
        begun = {u.file: pool.submit(u.write, self.folder / u.file) for u in mine if pool and not self._is_done(u)}
        with Progress(disable=self.rank > 0) as progress:
            bar = progress.add_task(title, total=total)
            for unit in mine:
                future = begun.get(unit.file)
                yield self.do(unit) if future is None else self._note(unit, future.result())
                progress.advance(bar, unit.size * self.ranks)

    def _is_done(self, unit: Unit) -> bool:
        known = self.done.get(unit.file)
        return known is not None and known["digest"] == unit.digest and self._is_whole(known)

    def _is_whole(self, known: dict[str, Any]) -> bool:
        path = self.folder / known["about"]["file"]
        return path.is_file() and bool(path.stat().st_size == known["bytes"])

    def files(self) -> list[Path]:
        """The finished files of all processes, sorted by name."""
        self._read()
        return sorted(self.folder / name for name, known in self.done.items() if self._is_whole(known))

    def finished(self, units: Iterable[Unit]) -> list[dict[str, Any]]:
        """The entries of all units, after all processes have finished."""
        self._read()
        return [self.done[unit.file]["about"] for unit in units]

    def forget(self) -> None:
        """Remove the journal of a finished pass that will not be resumed."""
        self.journal.unlink(missing_ok=True)


@contextmanager
def workers(count: int, begin: Callable[[], None] = lambda: None) -> Iterator[Executor | None]:
    """A pool of worker processes for a pass, or ``None`` if ``count`` is 0."""
    if count < 1:
        begin()
        yield None
        return
    # Fork, so that open files need not be pickled; safe, because no multi-threaded library is loaded here.
    with ProcessPoolExecutor(count, get_context("fork"), begin) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise CefamError("A worker process was killed: there may be too little memory for so many.") from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def processes() -> tuple[int, int]:
    """Rank of this process and number of processes started by ``torchrun``; (0, 1) without ``torchrun``."""
    from torch import distributed

    if not distributed.is_torchelastic_launched():
        return 0, 1
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    return distributed.get_rank(), distributed.get_world_size()


def wait() -> None:
    """Wait for the other processes, if there are any."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()


def require_shared(folder: Path) -> None:
    """Check that all processes see the folder, that is, that all nodes share its disk.

    All processes must call it, after rank 0 has created the folder.
    """
    from torch import distributed

    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    token = [uuid4().hex]
    distributed.broadcast_object_list(token)
    mark = folder / f".shared-{token[0]}"
    if distributed.get_rank() == 0:
        mark.touch()
    distributed.barrier()
    seen: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(seen, _appears(mark))
    mark.unlink(missing_ok=True)
    if not all(seen):
        raise CefamError(
            f"{seen.count(False)} of {len(seen)} processes do not see the files of {folder}: on several nodes it must lie on a disk that "
            f"all of them share. Name another folder."
        )


def _appears(path: Path) -> bool:
    """Whether a file is visible; network file systems may show new files with a delay."""
    for _ in range(PATIENCE):
        with suppress(OSError):
            if path.name in os.listdir(path.parent):  # queries the server; `exists` may use a cache
                return True
        time.sleep(0.5)
    return False
