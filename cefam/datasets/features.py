"""The feature cache: what the two frozen towers compute for every view, once, to train from many times.

A folder holds ``manifest.json`` and ``features-VVV-NNNNNNNN.safetensors`` (view, first photograph), with tensors
``pooled.0`` .. ``pooled.L-1`` (n, C_l) and ``embedding`` (n, D). A view is one random crop of one photograph; several views
per photograph stand in for the fresh crops of every epoch.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from cefam.attribution.scores import pool
from cefam.datasets.contract import MANIFEST
from cefam.datasets.photographs import Pictures, census, device_named, groups, views_of
from cefam.errors import CefamError, MissingError
from cefam.files import write_tensors, write_text
from cefam.passes import JOURNAL, Pass, Unit
from cefam.reading import read_description
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.vlm import VisionLanguageModel, encode_images
from cefam.views import TrainingView, View


@dataclass
class FeatureManifest:
    """What a feature cache holds and what it was computed with."""

    classifier: dict[str, Any]
    vlm: dict[str, Any]
    view: dict[str, Any]
    num_rows: int = 0
    files: list[dict[str, Any]] = field(default_factory=list)
    format: str = "cefam-features"
    version: int = 1

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read a cache's manifest.

        Raises:
            MissingError: if it does not exist.
            CefamError: where it is something else, or of another version.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise MissingError(
                f"{folder} is not a finished feature cache (no {MANIFEST}): make it with `cefam features`."
            )
        return read_description(path.read_text(), cls, path, "run `cefam features` again", cls._complete)

    def _complete(self) -> Any:
        rows = sum(entry["rows"] for entry in self.files if entry["file"])
        return rows == self.num_rows and self.classifier["channels"] and self.vlm["embedding_dim"]


def compute_features(
    classifier: FrozenClassifier,
    vlm: VisionLanguageModel,
    images: str,
    folder: str,
    views: int = 0,
    size: int = 224,
    resize: int = 256,
    seed: int = 0,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
) -> FeatureManifest:
    """Cache what both towers compute for the photographs of a folder or of shards.

    A stopped run is taken up where it stopped: files that came from the same photographs are kept.

    Args:
        classifier: the frozen classifier.
        vlm: the teacher.
        images: a folder of images, or of shards.
        folder: where the cache goes.
        views: random training views per photograph; 0: one evaluation view (for validation).
        size: side of a view.
        resize: short side before the central crop of the evaluation view.
        seed: of the random views.
        batch_size: views per forward pass.
        num_workers: processes that decode photographs; the result does not depend on it.
        device: "auto", "cpu", "cuda" ...

    Raises:
        CefamError: where the folder holds a cache of other towers or views, or a finished one of other photographs.
    """
    if views < 0:
        raise CefamError(f"views must be 0 (one evaluation view) or more, got {views}.")
    if batch_size < 1:
        raise CefamError(f"batch_size must be at least 1, got {batch_size}.")
    target = Path(folder)
    total, photographs = census(images)
    view: dict[str, Any] = {"views": views, "size": size, "resize": resize, "seed": seed}
    manifest = FeatureManifest(classifier.identity(), vlm.freeze().identity(), {**view, "photographs": photographs})
    where = device_named(device)
    classifier.to(where)
    vlm.to(where)
    crop = TrainingView(size) if views else View(resize, size)
    _check_finished(target, photographs)

    def write(pictures: Callable[[], Pictures], first: int, stream: int, path: Path) -> dict[str, Any]:
        opened = pictures()
        loader = views_of(opened, crop, stream, first, batch_size, num_workers)
        rows = [_features(classifier, vlm, batch.to(where)) for batch in loader]
        write_tensors(path, {name: torch.cat([row[name] for row in rows]) for name in rows[0]})
        return {"rows": len(opened)}

    parts = groups(images)

    def units() -> Iterator[Unit]:
        for repeat in range(max(views, 1)):
            first = 0
            for part in parts:
                name = f"features-{repeat:03d}-{first:08d}.safetensors"
                work = partial(write, part.open, first, seed * 1_000_003 + repeat)
                yield Unit(name, part.digest, part.count, work)
                first += part.count

    with Pass(target, [manifest.classifier, manifest.vlm, view]) as work:
        manifest.files = list(work.over(units(), "features", total * max(views, 1)))
        manifest.num_rows = sum(entry["rows"] for entry in manifest.files)
        write_text(target / MANIFEST, json.dumps(asdict(manifest), indent=1))
    return manifest


def _check_finished(folder: Path, photographs: str) -> None:
    """Let photographs change only until a cache is finished.

    Raises:
        CefamError: where the folder holds a finished cache of other photographs, or something else.
    """
    if not (folder / MANIFEST).exists():
        return
    if not (folder / JOURNAL).is_file():
        raise CefamError(f"{folder} holds other data: name another folder for the features.")
    if FeatureManifest.read(folder).view["photographs"] != photographs:
        raise CefamError(f"{folder} holds features of other photographs: name another folder, or remove it.")


@torch.no_grad()
def _features(classifier: FrozenClassifier, vlm: VisionLanguageModel, images: Tensor) -> dict[str, Tensor]:
    pooled = {f"pooled.{stage}": pool(a.float()) for stage, a in enumerate(classifier(images).activations)}
    tensors = {**pooled, "embedding": encode_images(vlm, images)}
    tensors = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            tower = "vision-language model" if name == "embedding" else "classifier"
            raise CefamError(
                f"The output of the {tower} ({name}) is not finite: its weights hold NaN, or numbers that are too large."
            )
    return tensors


def load_features(folder: str | Path) -> dict[str, Tensor]:
    """All rows of a cache: ``pooled.0`` .. (N, C_l) and ``embedding`` (N, D), in memory: 4 bytes a number.

    Raises:
        MissingError: where the cache is unfinished.
        CefamError: where a file is broken, or does not fit the manifest.
    """
    from safetensors.torch import load_file

    manifest = FeatureManifest.read(folder)
    widths = {f"pooled.{stage}": width for stage, width in enumerate(manifest.classifier["channels"])}
    widths["embedding"] = manifest.vlm["embedding_dim"]
    # Filled file by file: holding all parts and the whole would take twice the memory.
    every = {name: torch.empty(manifest.num_rows, width) for name, width in widths.items()}
    first = 0
    for entry in manifest.files:
        path, rows = Path(folder) / entry["file"], entry["rows"]
        again = "remove it and run `cefam features` again."
        try:
            part = load_file(path)
        except Exception as error:  # safetensors has errors of its own for a truncated file
            raise CefamError(f"{path} cannot be read ({error}): {again}") from error
        expected, found = (
            ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
            for shapes in (
                {name: (rows, width) for name, width in widths.items()},
                {name: tuple(tensor.shape) for name, tensor in part.items()},
            )
        )
        if found != expected:
            raise CefamError(f"{path} holds {found} instead of {expected}: {again}")
        for name, tensor in part.items():
            every[name][first : first + rows] = tensor
        first += rows
    return every
