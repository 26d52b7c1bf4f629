"""Examples: a few pairs with the measured candidates of every method, stored with the records."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from cefam.concepts.sets import ConceptSet
from cefam.errors import CefamError
from cefam.evaluation.evaluator import PairValues
from cefam.io.files import replacing
from cefam.pairs import RegionBatch


@dataclass(frozen=True)
class Candidate:
    """One measured map (h, w), its caption, and the protocols that selected it ("top1", "oracle")."""

    map: np.ndarray
    caption: str
    chosen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Example:
    """One pair: ``title``; ``image`` (H, W, 3), uint8; ``mask`` (h, w), boolean, or ``None``; candidates by method."""

    title: str
    image: np.ndarray
    mask: np.ndarray | None
    candidates: dict[str, list[Candidate]]


def to_image(view: Any) -> np.ndarray:
    """Convert a view (3, H, W), uint8 or floats in [0, 1], to an image (H, W, 3), uint8."""
    scaled = (view.float() * 255).round().clamp(0, 255).byte() if view.is_floating_point() else view
    image: np.ndarray = scaled.permute(1, 2, 0).cpu().numpy()
    return image


def of_pairs(
    batch: RegionBatch, measured: PairValues, rows: Sequence[int], concepts: ConceptSet, stages: Sequence[str]
) -> list[Example]:
    """Create examples from the pairs of a batch whose candidates were kept."""
    found, kept = measured.found, []
    for place, row in enumerate(rows):
        concept = concepts.concepts[int(found.pairs.concept[row])]
        mask = batch.masks[found.mask[row]] == found.label[row]
        candidates = {
            method: [
                Candidate(
                    of_method.candidates.maps[place, index].float().cpu().numpy(),
                    _caption(int(of_method.candidates.stage[place, index]), float(of_method.nra[place, index]), stages),
                    tuple(p for p, chosen in of_method.choice.items() if int(chosen[place]) == index),
                )
                for index in range(of_method.nra.shape[1])
                if bool(of_method.candidates.valid[place, index])
            ]
            for method, of_method in measured.kept.items()
        }
        image = to_image(batch.image[int(found.pairs.image[row])])
        kept.append(Example(f"{concept.word} ({concept.category})", image, mask.cpu().numpy(), candidates))
    return kept


def _caption(stage: int, nra: float, stages: Sequence[str]) -> str:
    return f"{stages[stage]}  {nra:.2f}" if stage >= 0 else f"{nra:.2f}"


def to_arrays(kept: Sequence[Example]) -> dict[str, np.ndarray]:
    """Convert examples to named arrays; maps in half precision."""
    arrays: dict[str, np.ndarray] = {}
    about = []
    for number, example in enumerate(kept):
        arrays[f"image{number}"] = example.image
        if example.mask is not None:
            arrays[f"mask{number}"] = example.mask
        listed: dict[str, list[Any]] = {}
        for method, candidates in example.candidates.items():
            listed[method] = []
            for candidate in candidates:
                name = f"map{len(arrays)}"
                largest = float(np.abs(candidate.map).max(initial=0)) or 1.0
                arrays[name] = (candidate.map / largest).astype(np.float16)  # each map is normalized by its own maximum
                listed[method].append([name, candidate.caption, list(candidate.chosen)])
        about.append({"title": example.title, "candidates": listed})
    arrays["about"] = np.array(json.dumps(about))
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray]) -> list[Example]:
    """The inverse of :func:`to_arrays`."""
    return [
        Example(
            entry["title"],
            arrays[f"image{number}"],
            arrays.get(f"mask{number}"),
            {
                method: [Candidate(arrays[n].astype(np.float32), text, tuple(chosen)) for n, text, chosen in each]
                for method, each in entry["candidates"].items()
            },
        )
        for number, entry in enumerate(json.loads(str(arrays["about"])))
    ]


def save(kept: Sequence[Example], path: Path) -> None:
    """Write examples as a compressed .npz file."""
    arrays: Any = to_arrays(kept)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: Path) -> list[Example]:
    """The inverse of :func:`save`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return from_arrays(dict(arrays))
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise CefamError(f"{path} cannot be read ({error}): run `cefam evaluate` again.") from error
