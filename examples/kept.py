"""Commands of cefam whose results are kept."""

import time
from pathlib import Path

from cefam.commands import main as cefam


def kept(made: Path, *arguments: object) -> None:
    """Run a command, unless the file that it leaves is there; stop where it fails.

    A training leaves no file that says that it has ended: any name will do, and an empty file of this name is left.
    """
    if made.is_file():
        return
    start = time.monotonic()
    words = [str(argument) for argument in arguments]
    if cefam(words):
        raise SystemExit(f"Stopped at: cefam {' '.join(words)}")
    made.touch()
    print(f"({time.monotonic() - start:.0f} s) cefam {' '.join(words)}", flush=True)
