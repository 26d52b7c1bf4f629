"""Explanation: what was found in one image, and the forms that it takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cefam.errors import CefamError, ExistsError
from cefam.explanations.page import notebook, page
from cefam.explanations.stored import arrays, as_csv, as_json, plain
from cefam.explanations.text import summary
from cefam.explanations.types import Findings
from cefam.io.files import replacing, write_text


class Explanation(Findings):
    """One image: a class, its probability, and the concepts that speak for or against it; fields as of its base class.

    ``str()`` is a summary for a terminal, ``_repr_html_`` one for a notebook; :meth:`save` writes files.
    """

    def __str__(self) -> str:
        return summary(self)

    def _repr_html_(self) -> str:
        return notebook(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain types; regions as run lengths of their masks, on a photograph of at most 128 pixels."""
        return plain(self)

    def arrays(self) -> dict[str, Any]:
        """NumPy arrays: ``photograph`` (H, W, 3), ``view`` (3, h, w), ``regions`` (T, H, W), ``attributions`` (T, 1, h, w), which lie
        on the view as Quantus wants them, and per concept ``numbers``, ``scores``, ``contributions``; ``target``.
        """  # noqa: D205
        return arrays(self)

    def save(self, path: str | Path, overwrite: bool = False, **options: Any) -> Path:
        """Write a file; its kind is its extension: .html, .png, .svg, .json, .csv or .npz.

        Args:
            path: the file.
            overwrite: replace one that is there.
            options: of the page: ``colormap``.

        Raises:
            ExistsError: where it exists.
            CefamError: for another extension.
        """
        place = Path(path)
        check_place(place, overwrite)
        KINDS[place.suffix.lower()](self, place, **options)
        return place


def _save_arrays(explanation: Findings, path: Path) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays(explanation))  # type: ignore[arg-type]


def _save_figure(explanation: Findings, path: Path) -> None:
    from cefam.explanations.figure import draw  # matplotlib takes half a second

    with replacing(path) as temporary:
        draw(explanation).savefig(temporary, format=path.suffix[1:].lower(), dpi=150)


def _save_page(explanation: Findings, path: Path, colormap: str = "viridis") -> None:
    write_text(path, page(explanation, colormap))


KINDS: dict[str, Callable[..., None]] = {
    ".html": _save_page,
    ".png": _save_figure,
    ".svg": _save_figure,
    ".json": lambda explanation, path: write_text(path, as_json(explanation)),
    ".csv": lambda explanation, path: write_text(path, as_csv(explanation)),
    ".npz": _save_arrays,
}


def check_place(path: Path, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before anything is computed for it.

    Raises:
        ExistsError: where it exists.
        CefamError: for an unknown extension.
    """
    if path.suffix.lower() not in KINDS:
        raise CefamError(
            f"{path} has the extension {path.suffix!r}: an explanation is saved as one of {', '.join(KINDS)}."
        )
    if path.exists() and not overwrite:
        raise ExistsError(f"{path} already exists: name another file, or pass `--overwrite true`.")
