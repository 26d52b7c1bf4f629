"""Explanation of one image, with its output formats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cefam.errors import CefamError, ExistsError
from cefam.explanations.page import notebook, page
from cefam.explanations.text import summary
from cefam.explanations.types import Findings
from cefam.io.files import replacing, write_text


class Explanation(Findings):
    """A class of one image, its probability, and the concepts for and against it; fields as in the base class.

    ``str()`` is a summary for a terminal, ``_repr_html_`` one for a notebook; :meth:`save` writes files.
    """

    def __str__(self) -> str:
        return summary(self)

    def _repr_html_(self) -> str:
        return notebook(self)

    def save(self, path: str | Path, overwrite: bool = False, **options: Any) -> Path:
        """Write a file in the format of its extension: .html, .png, .jpg, .svg, .pdf, .json, .csv or .npz.

        Args:
            path: output file.
            overwrite: replace an existing file.
            options: options of the page: ``colormap``.

        Raises:
            ExistsError: if the file exists.
            CefamError: for an unknown extension.
        """
        place = Path(path)
        check_place(place, overwrite)
        KINDS[place.suffix.lower()](self, place, **options)
        return place


def _save_arrays(explanation: Findings, path: Path) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **explanation.arrays())


def _save_figure(explanation: Findings, path: Path) -> None:
    from cefam.explanations.figure import DPI, draw  # importing matplotlib takes half a second

    with replacing(path) as temporary:
        draw(explanation).savefig(temporary, format=path.suffix[1:].lower(), dpi=DPI)


def _save_page(explanation: Findings, path: Path, colormap: str = "viridis") -> None:
    write_text(path, page(explanation, colormap))


KINDS: dict[str, Callable[..., None]] = {
    ".html": _save_page,
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".svg", ".pdf"), _save_figure),
    ".json": lambda explanation, path: write_text(path, explanation.to_json()),
    ".csv": lambda explanation, path: write_text(path, explanation.to_csv()),
    ".npz": _save_arrays,
}


def check_place(path: Path, overwrite: bool) -> None:
    """Check that a file can be written, before anything is computed."""
    if path.suffix.lower() not in KINDS:
        raise CefamError(
            f"{path} has the extension {path.suffix!r}: an explanation is saved as one of {', '.join(KINDS)}."
        )
    if path.exists() and not overwrite:
        raise ExistsError(f"{path} already exists: name another file, or pass `--overwrite true`.")
