"""Build the API reference from the docstrings: ``python docs/reference.py [folder]`` (or ``make docs``)."""

import sys
from importlib import import_module
from pathlib import Path

import pdoc

import cefam

ROOT = Path(cefam.__file__).parent


def build(folder: Path) -> None:
    """Write one page per room of the house, and an index."""
    for name in cefam.__all__:
        setattr(cefam, name, getattr(cefam, name))  # public names are loaded on first use; pdoc looks, and does not use
    parts = [path.relative_to(ROOT.parent).with_suffix("").parts for path in ROOT.rglob("*.py")]
    modules = {".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts} - {"cefam.__main__"}
    # pdoc finds the modules of a package by itself, unless the package says what it offers.
    shown = [name for name in modules if hasattr(import_module(name.rpartition(".")[0] or name), "__all__")]
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*sorted(shown), output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs"))
