"""Scenes drawn once into memory, with what the two towers learn from: classes, concepts, captions."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cefam.brodenette.captions import caption, phrases
from cefam.brodenette.drawing import draw
from cefam.brodenette.rules import CLASSES, RULES, held_out
from cefam.brodenette.scenes import Scene, compatible, describe
from cefam.brodenette.vocabulary import COLORS, LABELS, SIZE

CAPTIONS = 4  # of a scene
# Share of the scene from which on a concept counts as shown. Nearly every scene has a few pixels of nearly every color.
SHOWN = {"color": 0.04, "material": 0.04, "object": 0.01, "part": 0.002}


class Scenes(NamedTuple):
    """N scenes: ``images`` (N, 3, SIZE, SIZE) uint8, ``label`` (N,), ``targets`` (N, classes), ``concepts`` (N, T) boolean, texts."""

    images: Tensor
    label: Tensor
    targets: Tensor
    concepts: Tensor
    captions: list[list[tuple[str, ...]]]
    facts: list[frozenset[str]]

    def __add__(self, other: "Scenes") -> "Scenes":  # type: ignore[override]
        tensors = [torch.cat([mine, theirs]) for mine, theirs in zip(self[:4], other[:4], strict=True)]
        return Scenes(*tensors, self.captions + other.captions, self.facts + other.facts)


def edited(scene: Scene) -> Scene:
    """The scene with some parts or an object missing, or a part in another color; drawn from the scene's name.

    No edit shows a look that is kept for the evaluation.
    """
    random = Random(f"{scene.name}/edit")
    main = next(place for place in scene.objects if any(compatible(scene.elements[place], rule) for rule in RULES))
    place = main if random.randrange(3) else random.choice(scene.objects)
    element = scene.elements[place]
    kind = random.choice(("parts", "parts", "object", "color", "color"))
    if kind == "object":
        return scene.without(place)
    if kind == "parts":
        for part in random.sample(element.parts, random.randint(1, max(1, len(element.parts) - 1))):
            scene = scene.without(place, part)
        return scene
    while True:
        part, color = random.choice(element.parts), random.choice(tuple(COLORS))
        changed = scene.edited(place, part, color)
        look = changed.elements[place]
        if color != element.look(part).color and not held_out(look.kind, look.color, str(look.material)):
            return changed


def targets(scene: Scene) -> np.ndarray:
    """Every class that what is visible allows, with equal weights that add to 1; all classes where none is: (classes,)."""
    objects = [scene.elements[place] for place in scene.objects]
    fits = np.array([any(compatible(element, rule) for element in objects) for rule in RULES])
    fits = fits if fits.any() else np.ones_like(fits)
    return np.asarray(fits / fits.sum(), np.float32)


def _described(split: str, index: int, edits: bool) -> Scene:
    """A scene of a split; with edits, every other one is edited."""
    scene = describe(split, index)
    return edited(scene) if edits and index % 2 else scene


def _drawn(split: str, edits: bool, start: int, stop: int) -> tuple[np.ndarray, ...]:
    images = np.empty((stop - start, SIZE, SIZE, 3), np.uint8)
    label = np.full(stop - start, -1, np.int64)
    aims = np.zeros((stop - start, len(CLASSES)), np.float32)
    concepts = np.zeros((stop - start, len(LABELS) + 1), bool)
    for row, index in enumerate(range(start, stop)):
        scene = _described(split, index, edits)
        drawing = draw(scene)
        images[row], aims[row] = drawing.image, targets(scene)
        if scene.label is not None:
            label[row] = CLASSES.index(scene.label)
        for category, share in SHOWN.items():
            mask = drawing.masks[category]
            counts = np.bincount(mask.ravel(), minlength=len(LABELS) + 1)
            concepts[row] |= counts >= share * mask.size
    return images, label, aims, concepts[:, 1:]


def scenes(split: str, count: int, cache: Path, edits: bool = False) -> Scenes:
    """The first scenes of a split, every other one edited if inputs for; pixels are kept in ``cache``."""
    path = cache / f"{split}{'-edited' if edits else ''}-{count}.npz"
    if not path.is_file():
        bounds = [(start, min(start + 500, count)) for start in range(0, count, 500)]
        with ProcessPoolExecutor() as pool:
            parts = list(pool.map(_drawn, *zip(*[(split, edits, *bound) for bound in bounds], strict=True)))
        images, label, aims, concepts = (np.concatenate(column) for column in zip(*parts, strict=True))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        with temporary.open("wb") as file:
            np.savez(file, images=images, label=label, targets=aims, concepts=concepts)
        temporary.rename(path)
    stored = np.load(path)
    images = torch.from_numpy(stored["images"]).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    described = [describe(split, index) for index in range(count)]
    captions = [[caption(scene, variant) for variant in range(CAPTIONS)] for scene in described]
    facts = [frozenset(phrase for element in phrases(scene) for phrase in element) for scene in described]
    rest = (torch.from_numpy(stored[name]) for name in ("label", "targets", "concepts"))
    return Scenes(images, *rest, captions, facts)


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
