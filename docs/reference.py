"""Build the API reference from the docstrings: ``python docs/reference.py [folder]`` (or ``make docs``)."""

import sys
from pathlib import Path

import pdoc

import cefam

ROOT = Path(cefam.__file__).parent


def build(folder: Path) -> None:
    """Write one page per room of the house, and an index."""
    for name in cefam.__all__:
        setattr(cefam, name, getattr(cefam, name))  # public names are loaded on first use; pdoc looks, and does not use
    files = [*ROOT.glob("*.py"), *ROOT.glob("*/__init__.py")]
    rooms = {"cefam." + (path.parent.name if path.stem == "__init__" else path.stem) for path in files}
    pdoc.render.configure(docformat="google")
    pdoc.pdoc("cefam", *sorted(rooms - {"cefam.cefam", "cefam.__main__"}), output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs"))
