"""Scenes drawn once into memory, with what the two towers learn from: classes, concepts, captions."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cefam.brodenette.captions import caption, phrases
from cefam.brodenette.drawing import draw
from cefam.brodenette.rules import CLASSES
from cefam.brodenette.scenes import describe
from cefam.brodenette.vocabulary import LABELS, SIZE

CAPTIONS = 4  # of a scene
# Share of the scene from which on a concept counts as shown. Nearly every scene has a few pixels of nearly every color.
SHOWN = {"color": 0.04, "material": 0.04, "object": 0.01, "part": 0.002}


class Scenes(NamedTuple):
    """N scenes: ``images`` (N, 3, SIZE, SIZE) uint8, ``label`` (N,), ``concepts`` (N, T) boolean, and texts."""

    images: Tensor
    label: Tensor
    concepts: Tensor
    captions: list[list[tuple[str, ...]]]
    facts: list[frozenset[str]]

    def __add__(self, other: "Scenes") -> "Scenes":  # type: ignore[override]
        tensors = [torch.cat([mine, theirs]) for mine, theirs in zip(self[:3], other[:3], strict=True)]
        return Scenes(*tensors, self.captions + other.captions, self.facts + other.facts)


def _drawn(split: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images = np.empty((stop - start, SIZE, SIZE, 3), np.uint8)
    label = np.full(stop - start, -1, np.int64)
    concepts = np.zeros((stop - start, len(LABELS) + 1), bool)
    for row, index in enumerate(range(start, stop)):
        scene = describe(split, index)
        drawing = draw(scene)
        images[row] = drawing.image
        if scene.label is not None:
            label[row] = CLASSES.index(scene.label)
        for category, share in SHOWN.items():
            mask = drawing.masks[category]
            counts = np.bincount(mask.ravel(), minlength=len(LABELS) + 1)
            concepts[row] |= counts >= share * mask.size
    return images, label, concepts[:, 1:]


def scenes(split: str, count: int, cache: Path) -> Scenes:
    """The first scenes of a split; pixels are kept in ``cache``."""
    path = cache / f"{split}-{count}.npz"
    if not path.is_file():
        bounds = [(start, min(start + 500, count)) for start in range(0, count, 500)]
        with ProcessPoolExecutor() as pool:
            parts = list(pool.map(_drawn, [split] * len(bounds), *zip(*bounds, strict=True)))
        images, label, concepts = (np.concatenate(column) for column in zip(*parts, strict=True))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        with temporary.open("wb") as file:
            np.savez(file, images=images, label=label, concepts=concepts)
        temporary.rename(path)
    stored = np.load(path)
    images = torch.from_numpy(stored["images"]).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    described = [describe(split, index) for index in range(count)]
    captions = [[caption(scene, variant) for variant in range(CAPTIONS)] for scene in described]
    facts = [frozenset(phrase for element in phrases(scene) for phrase in element) for scene in described]
    return Scenes(images, torch.from_numpy(stored["label"]), torch.from_numpy(stored["concepts"]), captions, facts)


def shifted(images: Tensor, generator: torch.Generator, most: int = 6) -> Tensor:
    """Augmentation of a batch: half of it mirrored, all of it moved by up to ``most`` pixels (one shift a batch)."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
    down, right = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
    padded = torch.nn.functional.pad(images.float(), (most,) * 4, mode="reflect")
    return padded[..., down : down + SIZE, right : right + SIZE].to(torch.uint8)


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Sequence[int]]:
    """Rows of shuffled batches; an incomplete last one is dropped."""
    order = torch.randperm(count, generator=generator)
    yield from (order[start : start + size].tolist() for start in range(0, count - size + 1, size))
