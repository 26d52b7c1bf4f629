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
from cefam.vlm import VisionLanguageModel, encode_images

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


@dataclass(frozen=True)
class Unit:
    """Photographs that are cached, and computed again, together; ``digest`` tells them from others."""

    digest: str
    pictures: list[Callable[[], Image.Image]]


def picture_units(source: str | Path, size: int = 256) -> Iterator[Unit]:
    """Photographs of a folder, ``size`` at a time, or of shards, one shard at a time.

    Shards are told apart by their content, files by name and length: reading them all would take as long as the work.
    """
    if (Path(source) / MANIFEST).is_file():
        manifest = Manifest.read(source)
        for shard, (path, count) in zip(manifest.shards, manifest.counts(source).items(), strict=True):
            yield Unit(shard["sha256"], [sample.picture for sample in read_shard(path, count)])
        return
    paths = [path for path, _ in list_images(source)]
    for start in range(0, len(paths), size):
        some = paths[start : start + size]
        yield Unit(_listed(source, some), [partial(open_picture, path, str(path)) for path in some])


def _listed(source: str | Path, paths: Sequence[Path]) -> str:
    listed = [(path.relative_to(source).as_posix(), path.stat().st_size) for path in paths]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


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

    A stopped run is taken up where it stopped: files that are there, of the same photographs, are kept.

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
        ValueError: where the folder holds a cache of other towers or views, or a finished one of other photographs.
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
            first = 0
            for unit in picture_units(images):
                path = folder / f"features-{repeat:03d}-{first:08d}.safetensors"
                if not _is_there(path, unit):
                    dataset = _Views(unit.pictures, first, seed * 1_000_003 + repeat, crop)
                    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers)
                    rows = [_features(classifier, vlm, batch.to(where)) for batch in loader]
                    tensors = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
                    write_tensors(path, tensors, {"photographs": unit.digest})
                first += len(unit.pictures)
                manifest.files.append({"file": path.name, "rows": len(unit.pictures)})
                manifest.num_rows += len(unit.pictures)
                progress.advance(bar, len(unit.pictures))
    write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=1))
    return manifest


def _check_same_run(folder: Path, manifest: FeatureManifest) -> None:
    """Let a run go on only in a folder that is empty or of the very same run; photographs may change until it is finished."""
    run = folder / "run.json"
    if (folder / MANIFEST).exists():
        finished = FeatureManifest.read(folder) if run.is_file() else None
        if finished is None:
            raise ValueError(f"{folder} holds other data: name another folder for the features.")
        if finished.view["photographs"] != manifest.view["photographs"]:
            raise ValueError(f"{folder} holds features of other photographs: name another folder, or remove it.")
    view = {name: value for name, value in manifest.view.items() if name != "photographs"}
    mine = json.dumps([manifest.classifier, manifest.vlm, view], sort_keys=True, default=str)
    if run.is_file() and run.read_text() != mine:
        raise ValueError(f"{folder} holds features of other towers or views: name another folder, or remove it.")
    if not run.is_file():
        write_text(run, mine)


def _is_there(path: Path, unit: Unit) -> bool:
    """Whether a file holds the features of these very photographs."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return bool(file.metadata().get("photographs") == unit.digest)
    except (FileNotFoundError, SafetensorError):
        return False


def _census(source: str | Path) -> tuple[int, str]:
    """Number of photographs, and a digest that a changed folder does not have."""
    if (Path(source) / MANIFEST).is_file():
        manifest = Manifest.read(source)
        shards = json.dumps([shard["sha256"] for shard in manifest.shards])
        return manifest.num_samples, hashlib.sha256(shards.encode()).hexdigest()
    paths = [path for path, _ in list_images(source)]
    return len(paths), _listed(source, paths)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"There is no device {name!r} here ({str(error).splitlines()[0]}): try 'auto' or 'cpu'."
        ) from error
    return device


@torch.no_grad()
def _features(classifier: FrozenClassifier, vlm: VisionLanguageModel, images: Tensor) -> dict[str, Tensor]:
    pooled = {f"pooled.{stage}": pool(a) for stage, a in enumerate(classifier(images).activations)}
    tensors = {**pooled, "embedding": encode_images(vlm, images)}
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
