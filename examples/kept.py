"""Commands of cefam whose results are kept."""

import time
from pathlib import Path

from cefam.commands import main as cefam


def kept(made: Path, *arguments: object) -> None:
    """Run a command, unless the file that it makes is there; stop where it fails."""
    if made.is_file():
        return
    start = time.monotonic()
    words = [str(argument) for argument in arguments]
    if cefam(words):
        raise SystemExit(f"Stopped at: cefam {' '.join(words)}")
    print(f"({time.monotonic() - start:.0f} s) cefam {' '.join(words)}", flush=True)
