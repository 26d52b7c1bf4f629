"""The feature cache: what the two frozen towers say about every view, computed once, trained from many times.

A folder holds ``manifest.json`` and ``features-VVV-NNNNNNNN.safetensors`` (view, first photograph), with tensors
``pooled.0`` .. ``pooled.L-1`` (n, C_l) and ``embedding`` (n, D). A view is one random crop of one photograph; several views
per photograph stand in for the fresh crops of every epoch.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cefam.classifier import FrozenClassifier
from cefam.files import write_tensors, write_text
from cefam.prepare import list_images
from cefam.regions import pool
from cefam.shards import MANIFEST, Manifest, open_picture, read_shard
from cefam.views import TrainingView, View, drawn
from cefam.vlm import VisionLanguageModel

FORMAT, VERSION = "cefam-features", 1


@dataclass
class FeatureManifest:
    """What a feature cache holds and what it was computed with."""

    classifier: dict[str, Any]
    vlm: dict[str, Any]
    view: dict[str, Any]
    num_rows: int = 0
    files: list[dict[str, Any]] = field(default_factory=list)
    format: str = FORMAT
    version: int = VERSION

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read a cache's manifest.

        Raises:
            FileNotFoundError: where there is none.
            ValueError: where it is none of this version.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} is no finished feature cache (no {MANIFEST}): make it with `cefam features`."
            )
        try:
            values = json.loads(path.read_text())
            if (values["format"], values["version"]) == (FORMAT, VERSION):
                manifest = cls(**values)
                rows = sum(entry["rows"] for entry in manifest.files if entry["file"])
                if rows == manifest.num_rows and manifest.classifier["channels"] and manifest.vlm["embedding_dim"]:
                    return manifest
        except (ValueError, TypeError, KeyError):
            pass  # said below
        raise ValueError(f"{path} is no manifest of {FORMAT} version {VERSION}: run `cefam features` again.")


class _Views(Dataset[Tensor]):
    """Views of a list of pictures; each has a random stream of its own, so that workers do not matter."""

    def __init__(self, pictures: Sequence[Callable[[], Image.Image]], first: int, seed: int, view: Any) -> None:
        self.pictures, self.first, self.seed, self.view = pictures, first, seed, view

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        return drawn(self.view, self.pictures[index](), f"{self.seed}/{self.first + index}")


def picture_units(source: str | Path, unit: int = 256) -> Iterator[list[Callable[[], Image.Image]]]:
    """Photographs of a folder, or of shards, in units that are cached (and resumed) together."""
    if (Path(source) / MANIFEST).is_file():
        for path, count in Manifest.read(source).counts(source).items():
            yield [sample.picture for sample in read_shard(path, count)]
        return
    paths = [path for path, _ in list_images(source)]
    for start in range(0, len(paths), unit):
        yield [partial(open_picture, path, str(path)) for path in paths[start : start + unit]]


def compute_features(
    classifier: FrozenClassifier,
    vlm: VisionLanguageModel,
    images: str | Path,
    folder: str | Path,
    views: int = 0,
    size: int = 224,
    resize: int = 256,
    seed: int = 0,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
) -> FeatureManifest:
    """Cache what both towers say about the photographs of a folder or of shards.

    A stopped run is taken up where it stopped: files that are there are kept.

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
        ValueError: where the folder holds a cache of other towers or other views.
    """
    from rich.progress import Progress

    if views < 0:
        raise ValueError(f"views must be 0 (one evaluation view) or more, got {views}.")
    folder = Path(folder)
    total, photographs = _census(images)
    view = {"views": views, "size": size, "resize": resize, "seed": seed, "photographs": photographs}
    manifest = FeatureManifest(classifier.identity(), vlm.freeze().identity(), view)
    where = _device(device)
    classifier.to(where)
    vlm.to(where)
    _check_same_run(folder, manifest)
    crop = TrainingView(size) if views else View(resize, size)
    with Progress() as progress:
        bar = progress.add_task("features", total=total * max(views, 1))
        for repeat in range(max(views, 1)):
            for first, pictures in _numbered(picture_units(images)):
                path = folder / f"features-{repeat:03d}-{first:08d}.safetensors"
                if not path.is_file():
                    dataset = _Views(pictures, first, seed * 1_000_003 + repeat, crop)
                    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers)
                    rows = [_features(classifier, vlm, batch.to(where)) for batch in loader]
                    tensors = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
                    write_tensors(path, tensors)
                manifest.files.append({"file": path.name, "rows": len(pictures)})
                manifest.num_rows += len(pictures)
                progress.advance(bar, len(pictures))
    write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=1))
    return manifest


def _check_same_run(folder: Path, manifest: FeatureManifest) -> None:
    """Let a run go on only in a folder that is empty or of the very same run."""
    run = folder / "run.json"
    if (folder / MANIFEST).exists() and not run.is_file():
        raise ValueError(f"{folder} holds other data: name another folder for the features.")
    mine = json.dumps([manifest.classifier, manifest.vlm, manifest.view], sort_keys=True, default=str)
    if run.is_file() and run.read_text() != mine:
        raise ValueError(
            f"{folder} holds features of other towers, photographs or views: name another folder, or remove it."
        )
    if not run.is_file():
        write_text(run, mine)


def _census(source: str | Path) -> tuple[int, str]:
    """Number of photographs, and a hash of their names and sizes: a changed folder is another one."""
    if (Path(source) / MANIFEST).is_file():
        manifest = Manifest.read(source)
        paths, count = [Path(path) for path in manifest.files(source)], manifest.num_samples
    else:
        paths = [path for path, _ in list_images(source)]
        count = len(paths)
    listed = [(path.relative_to(source).as_posix(), path.stat().st_size) for path in paths]
    return count, hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"There is no device {name!r} here ({str(error).splitlines()[0]}): try 'auto' or 'cpu'."
        ) from error
    return device


def _numbered(
    units: Iterator[list[Callable[[], Image.Image]]],
) -> Iterator[tuple[int, list[Callable[[], Image.Image]]]]:
    first = 0
    for unit in units:
        yield first, unit
        first += len(unit)


@torch.no_grad()
def _features(classifier: FrozenClassifier, vlm: VisionLanguageModel, images: Tensor) -> dict[str, Tensor]:
    pooled = {f"pooled.{stage}": pool(a) for stage, a in enumerate(classifier(images).activations)}
    tensors = {**pooled, "embedding": vlm.encode_image(images)}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            tower = "vision-language model" if name == "embedding" else "classifier"
            raise ValueError(
                f"What the {tower} says ({name}) is not finite: its weights hold NaN, or numbers that are too large."
            )
    return {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}


def load_features(folder: str | Path) -> dict[str, Tensor]:
    """All rows of a cache: ``pooled.0`` .. (N, C_l) and ``embedding`` (N, D), in memory: 4 bytes a number.

    Raises:
        FileNotFoundError: where the cache is unfinished.
        ValueError: where a file is broken, or does not fit the manifest.
    """
    from safetensors.torch import load_file

    manifest = FeatureManifest.read(folder)
    widths = {f"pooled.{stage}": width for stage, width in enumerate(manifest.classifier["channels"])}
    widths["embedding"] = manifest.vlm["embedding_dim"]
    # Filled file by file: with the parts beside the whole, a large cache would take twice its memory.
    every = {name: torch.empty(manifest.num_rows, width) for name, width in widths.items()}
    first = 0
    for entry in manifest.files:
        path, rows = Path(folder) / entry["file"], entry["rows"]
        again = "remove it and run `cefam features` again."
        try:
            part = load_file(path)
        except Exception as error:  # safetensors has errors of its own for a truncated file
            raise ValueError(f"{path} cannot be read ({error}): {again}") from error
        expected, found = (
            ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
            for shapes in (
                {name: (rows, width) for name, width in widths.items()},
                {name: tuple(tensor.shape) for name, tensor in part.items()},
            )
        )
        if found != expected:
            raise ValueError(f"{path} holds {found} instead of {expected}: {again}")
        for name, tensor in part.items():
            every[name][first : first + rows] = tensor
        first += rows
    return every
