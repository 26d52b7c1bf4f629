"""The feature cache: outputs of both frozen towers for every view, computed once and reused in training.

A folder holds ``manifest.json`` and ``features.npy``, one row per view: the pooled maps of all stages, shallow to deep, and the
embedding, (N, C_1 + .. + C_L + D), in float32, float16 or bfloat16 (stored as int16, since NumPy lacks bfloat16). A view is one
random crop of a photograph; several views per photograph replace the new crops of every epoch. The file is memory-mapped: the
processes of a machine share it, and it may exceed the main memory.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cefam.attribution.scores import pool
from cefam.datasets.contract import MANIFEST
from cefam.datasets.photographs import Group, Photographs, Pictures, device_named, views_of
from cefam.datasets.storage import digest_of
from cefam.errors import CefamError, MissingError
from cefam.images.views import EvaluationView, training_view
from cefam.io.files import replacing, write_tensors, write_text
from cefam.io.identity import identity
from cefam.io.passes import JOURNAL, Pass, Unit, processes, wait
from cefam.io.reading import read_description
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.vlm import VisionLanguageModel, encode_images

FILE = "features.npy"
Precision = Literal["float32", "float16", "bfloat16"]
STORED: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": np.int16}


@dataclass
class FeatureManifest:
    """Contents of a feature cache, and the towers and views it was computed with."""

    classifier: dict[str, Any]
    vlm: dict[str, Any]
    view: dict[str, Any]
    precision: Precision = "float32"
    num_rows: int = 0
    sha256: str = ""
    format: str = "cefam-features"
    version: int = 2

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read a cache's manifest."""
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise MissingError(
                f"{folder} is not a finished feature cache (no {MANIFEST}): make it with `cefam features`."
            )
        return read_description(path.read_bytes(), cls, path, "run `cefam features` again", cls._complete)

    def _complete(self) -> Any:
        return self.num_rows > 0 and self.sha256 and sum(self.widths) > 0 and self.precision in get_args(Precision)

    @property
    def widths(self) -> list[int]:
        """Number of columns of each stage and of the embedding."""
        return [*self.classifier["channels"], self.vlm["embedding_dim"]]


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
    precision: Precision = "float32",
) -> FeatureManifest:
    """Cache the outputs of both towers for the photographs of a folder or of shards.

    An interrupted run is resumed: finished parts of unchanged photographs are kept. Under ``torchrun``, the photographs are
    distributed over the processes; the result is the same.

    Args:
        classifier: the frozen classifier.
        vlm: the teacher.
        images: a folder of images, or of shards.
        folder: output folder.
        views: random training views per photograph; 0: one evaluation view (for validation).
        size: side of a view.
        resize: short side before the central crop of the evaluation view.
        seed: seed of the random views.
        batch_size: views per forward pass.
        num_workers: decoding processes; the result does not depend on their number.
        device: "auto", "cpu", "cuda" ...
        precision: number format on disk: "float32", "float16" (half the size) or "bfloat16" (the range of float32).

    Raises:
        CefamError: if the folder holds a cache of other towers or views, or a finished cache of other photographs.
    """
    if views < 0:
        raise CefamError(f"views must be 0 (one evaluation view) or more, got {views}.")
    if batch_size < 1:
        raise CefamError(f"batch_size must be at least 1, got {batch_size}.")
    target = Path(folder)
    photographs = Photographs.read(images)
    view: dict[str, Any] = {"views": views, "size": size, "resize": resize, "seed": seed}
    manifest = FeatureManifest(
        classifier.identity(), vlm.freeze().identity(), {**view, "photographs": photographs.digest}, precision
    )
    share, where = processes(), device_named(device)
    finished = _finished(target, photographs.digest)
    classifier.to(where)
    vlm.to(where)
    crop = training_view(size) if views else EvaluationView(resize, size)

    def write(pictures: Callable[[], Pictures], first: int, stream: int, path: Path) -> dict[str, Any]:
        loader = views_of(pictures(), crop, stream, first, batch_size, num_workers)
        rows = torch.cat([_features(classifier, vlm, batch.to(where), precision) for batch in loader])
        write_tensors(path, {"features": rows})
        return {"rows": len(rows)}

    units = list(_units(photographs.groups, max(views, 1), seed, write))
    run = identity(classifier=classifier, vlm=vlm, view=view, precision=precision)
    with Pass(target, run, share) as computed:
        if not finished:
            for _ in computed.over(units, "features", photographs.count * max(views, 1)):
                pass
            wait()
            if share[0] == 0:
                _finish(target, manifest, computed.finished(units))
        wait()
    manifest = FeatureManifest.read(target)
    print(f"{manifest.num_rows} rows of features.")
    return manifest


def _units(parts: Sequence[Group], views: int, seed: int, write: Callable[..., dict[str, Any]]) -> Iterator[Unit]:
    """A unit for each view of each group of photographs."""
    for repeat in range(views):
        first = 0
        for part in parts:
            work = partial(write, part.open, first, seed * 1_000_003 + repeat)
            yield Unit(f"part-{repeat:03d}-{first:08d}.safetensors", part.digest, part.count, work)
            first += part.count


def _finish(folder: Path, manifest: FeatureManifest, entries: Sequence[dict[str, Any]]) -> None:
    """Join the parts into one file, write the manifest, and remove the parts."""
    from safetensors.torch import load_file

    parts = [folder / entry["file"] for entry in entries]
    manifest.num_rows, first = sum(entry["rows"] for entry in entries), 0
    shape = manifest.num_rows, sum(manifest.widths)
    with replacing(folder / FILE) as temporary:
        every = np.lib.format.open_memmap(temporary, mode="w+", dtype=STORED[manifest.precision], shape=shape)
        for part in parts:
            rows = load_file(part)["features"]
            stored = rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows
            every[first : first + len(rows)] = stored.numpy()
            first += len(rows)
        every.flush()
        manifest.sha256 = digest_of(temporary)
    write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=1))
    for part in parts:
        part.unlink()


def _finished(folder: Path, photographs: str) -> bool:
    """Whether the folder holds a finished cache of these photographs."""
    if not (folder / MANIFEST).exists():
        return False
    if not (folder / JOURNAL).is_file():
        raise CefamError(f"{folder} holds other data: name another folder for the features.")
    if FeatureManifest.read(folder).view["photographs"] != photographs:
        raise CefamError(f"{folder} holds features of other photographs: name another folder, or remove it.")
    return True


@torch.no_grad()
def _features(classifier: FrozenClassifier, vlm: VisionLanguageModel, images: Tensor, precision: Precision) -> Tensor:
    """Rows of the cache (B, W)."""
    pooled = [pool(activation.float()) for activation in classifier(images).activations]
    every = [*pooled, encode_images(vlm, images).float()]
    for place, values in enumerate(every):
        tower = f"classifier (pooled.{place})" if place < len(pooled) else "vision-language model (embedding)"
        if not bool(values.isfinite().all()):
            raise CefamError(
                f"The output of the {tower} is not finite: its weights hold NaN, or numbers that are too large."
            )
        if not bool(values.to(getattr(torch, precision)).isfinite().all()):
            raise CefamError(
                f"The output of the {tower} holds {float(values.abs().max()):.3g}, too large for {precision}: use bfloat16 or float32."
            )
    return torch.cat(every, dim=1).to(getattr(torch, precision)).cpu()


class Features(Dataset[dict[str, Any]]):
    """The rows of a cache: ``matrix`` (N, W), memory-mapped or on a device, in the precision of the file."""

    def __init__(self, matrix: Tensor, widths: Sequence[int]) -> None:
        self.matrix, self.widths = matrix, list(widths)

    def __len__(self) -> int:
        return len(self.matrix)

    def to(self, device: torch.device) -> Self:
        """The same rows on a device."""
        return type(self)(self.matrix.to(device), self.widths)

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        """A batch, by one index operation: torch's DataLoader prefers this to ``__getitem__``."""
        return self.split(self.matrix.index_select(0, torch.tensor(rows).to(self.matrix.device)))

    def split(self, rows: Tensor) -> dict[str, Any]:
        """Rows (B, W) as a training batch in float32: ``pooled``, a list of (B, C_l), and ``embedding`` (B, D)."""
        *pooled, embedding = (part.float() for part in torch.split(rows, self.widths, dim=1))
        return {"pooled": pooled, "embedding": embedding}


def load_features(folder: str | Path) -> Features:
    """Memory-map a cache."""
    manifest, path = FeatureManifest.read(folder), Path(folder) / FILE
    again = "copy it again, or make it again with `cefam features`."
    try:
        stored = np.load(path, mmap_mode="c", allow_pickle=False)  # copy-on-write: torch requires a writable array
    except FileNotFoundError as error:
        raise MissingError(f"{folder} has no {FILE}: {again}") from error
    except Exception as error:  # NumPy parses the header as Python, which raises various exceptions
        raise CefamError(f"{path} cannot be read ({error}): {again}") from error
    expected = (manifest.num_rows, sum(manifest.widths)), np.dtype(STORED[manifest.precision])
    if (stored.shape, stored.dtype) != expected:
        raise CefamError(f"{path} holds {stored.shape} {stored.dtype} instead of {expected[0]} {expected[1]}: {again}")
    matrix = torch.from_numpy(stored)
    return Features(matrix.view(torch.bfloat16) if manifest.precision == "bfloat16" else matrix, manifest.widths)
