"""Explanations as files: JSON, CSV, NumPy arrays, pictures for a paper, pages."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from cefam.errors import CefamError, ExistsError
from cefam.explanations.types import HALF, ConceptExplanation, Explanation
from cefam.files import replacing, write_text

FORMAT, VERSION = "cefam explanation", 1


class Rle(TypedDict):
    """A mask in COCO's run-length encoding: ``size`` (H, W); ``counts`` of 0s and 1s in turn, down the columns."""

    size: list[int]
    counts: list[int]


def run_lengths(mask: Tensor) -> Rle:
    """Encode a mask (H, W).

    >>> import torch
    >>> run_lengths(torch.tensor([[0, 1], [0, 1]], dtype=torch.bool))
    {'size': [2, 2], 'counts': [2, 2]}
    """
    flat = mask.cpu().numpy().astype(np.int8).flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], edges, [len(flat)]])
    counts = np.diff(bounds).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if len(flat) and flat[0] else counts}


def plain(explanation: Explanation) -> dict[str, Any]:
    """An explanation in plain types; :meth:`Explanation.to_dict`."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "photograph": explanation.name,
        "size": list(explanation.photograph.size),
        "target": explanation.target,
        "target_name": explanation.target_name,
        "probability": explanation.probability,
        "predicted": explanation.predicted,
        "predicted_name": explanation.predicted_name,
        "classes": [list(entry) for entry in explanation.classes],
        "stages": explanation.stages,
        "baseline": explanation.baseline,
        "settings": explanation.settings,
        "warnings": explanation.warnings,
        "region_threshold": HALF,
        "concepts": [{**row(part, explanation), "curve": part.curve, "region": part.rle()} for part in explanation],
    }


def row(part: ConceptExplanation, explanation: Explanation) -> dict[str, Any]:
    """A concept without its region and curve."""
    return {
        "number": part.concept.number,
        "word": part.concept.word,
        "category": part.concept.category,
        "score": part.score,
        "similarity": part.similarity,
        "vlm_score": part.vlm_score,
        "vlm_similarity": part.vlm_similarity,
        "stage": explanation.stages[part.stage],
        "association": part.association,
        "contribution": part.contribution,
        "contributions": part.contributions,
        "present": part.present,
        "distrust": part.distrust,
    }


def as_json(explanation: Explanation) -> str:
    """The explanation as JSON."""
    return json.dumps(plain(explanation), indent=1, ensure_ascii=False)


def as_csv(explanation: Explanation) -> str:
    """A line per concept; an association and, where it is known, a contribution per stage in columns of their own."""
    written = io.StringIO()
    rows = []
    for part in explanation:
        values = row(part, explanation)
        each = values.pop("contributions") or []
        values |= zip((f"association {name}" for name in explanation.stages), values.pop("association"), strict=True)
        values |= zip((f"contribution {name}" for name in explanation.stages), each, strict=False)
        rows.append({"photograph": explanation.name, "class": explanation.target_name, **values})
    columns = list(rows[0]) if rows else ["photograph", "class"]
    writer = csv.DictWriter(written, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()


def arrays(explanation: Explanation) -> dict[str, np.ndarray]:
    """NumPy arrays; :meth:`Explanation.arrays`."""
    photograph = explanation.photograph
    size = (photograph.view.shape[-2], photograph.view.shape[-1])
    on_view = [
        F.interpolate(part.maps[part.stage][None, None].float(), size, mode="bilinear", align_corners=False)[0]
        for part in explanation
    ]
    return {
        "photograph": photograph.pixels.permute(1, 2, 0).numpy(),
        "view": photograph.view.cpu().numpy(),
        "regions": np.stack([part.region.cpu().numpy() for part in explanation]),
        "attributions": np.stack([each.cpu().numpy() for each in on_view]),
        "numbers": np.array([part.concept.number for part in explanation]),
        "scores": np.array([part.score for part in explanation]),
        "contributions": np.array([np.nan if p.contribution is None else p.contribution for p in explanation]),
        "target": np.array(explanation.target),
    }


def _save_arrays(explanation: Explanation, path: Path) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays(explanation))  # type: ignore[arg-type]


def _save_figure(explanation: Explanation, path: Path) -> None:
    from cefam.explanations.figure import draw

    with replacing(path) as temporary:
        draw(explanation).savefig(temporary, format=path.suffix[1:].lower(), dpi=150)


def _save_page(explanation: Explanation, path: Path, colormap: str = "viridis") -> None:
    from cefam.explanations.page import page

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


def save(explanation: Explanation, path: Path, overwrite: bool = False, **options: Any) -> Path:
    """Write an explanation; :meth:`Explanation.save`."""
    check_place(path, overwrite)
    KINDS[path.suffix.lower()](explanation, path, **options)
    return path
