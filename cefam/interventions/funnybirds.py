"""A reader of FunnyBirds' own files (Hesse et al., ICCV 2023): pictures, part masks, pictures without parts, classes.

Tested on a small folder made in its format; not run on the original data, which was out of reach.
"""

import json
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cefam.errors import CefamError, MissingError
from cefam.pictures import read_pixels

# What each color of a part map is; left and right ones are one part.
COLORS: dict[tuple[int, int, int], str] = {
    (255, 255, 253): "eye",
    (255, 255, 254): "eye",
    (255, 255, 0): "beak",
    (255, 0, 1): "foot",
    (255, 0, 2): "foot",
    (0, 255, 1): "wing",
    (0, 255, 2): "wing",
    (0, 0, 255): "tail",
}


class Bird(NamedTuple):
    """One picture: ``image`` (3, H, W) uint8, its ``label``, and ``masks`` (H, W), boolean, of the parts that show."""

    image: Tensor
    label: int
    masks: dict[str, Tensor]


class FunnyBirds:
    """A folder of FunnyBirds.

    Args:
        root: with ``classes.json``, ``parts.json``, ``dataset_<split>.json`` and the pictures.
        split: "test" or "train".

    Raises:
        MissingError: where a file is missing.
        CefamError: where one is damaged.
    """

    def __init__(self, root: str | Path, split: str = "test") -> None:
        self.root, self.split = Path(root), split
        self.samples: list[dict[str, Any]] = self._read(f"dataset_{split}.json")
        self.parts: list[str] = list(self._read("parts.json"))
        self.classes: list[dict[str, int]] = [
            each["parts"] for each in sorted(self._read("classes.json"), key=lambda each: int(each["class_idx"]))
        ]

    def _read(self, name: str) -> Any:
        path = self.root / name
        if not path.is_file():
            raise MissingError(f"{self.root} is not a folder of FunnyBirds: it has no {name}.")
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise CefamError(f"{path} is not JSON ({error}): unpack FunnyBirds again.") from error

    def __len__(self) -> int:
        return len(self.samples)

    def label(self, index: int) -> int:
        """The class of a picture."""
        return int(self.samples[index]["class_idx"])

    def bird(self, index: int) -> Bird:
        """A picture with its part masks."""
        place = f"{self.label(index)}/{index:06d}.png"
        colors = self._pixels(f"{self.split}_part_map/{place}").permute(1, 2, 0).numpy()
        masks: dict[str, Tensor] = {}
        for color, part in COLORS.items():
            shown = torch.from_numpy((colors == np.array(color, np.uint8)).all(axis=-1))
            masks[part] = masks[part] | shown if part in masks else shown
        found = {part: mask for part, mask in masks.items() if bool(mask.any())}
        return Bird(self._pixels(f"{self.split}/{place}"), self.label(index), found)

    def without(self, index: int, removed: Iterable[str]) -> Tensor:
        """The same picture drawn without some parts (3, H, W).

        Raises:
            CefamError: for a part that there is not.
        """
        removed = set(removed)
        if removed - set(self.parts):
            raise CefamError(
                f"FunnyBirds has no part {min(removed - set(self.parts))!r}; it has {', '.join(self.parts)}."
            )
        kept = "_".join(["body", *sorted(set(self.parts) - removed)])
        return self._pixels(f"{self.split}_interventions/{self.label(index)}/{index:06d}/{kept}.png")

    def _pixels(self, place: str) -> Tensor:
        path = self.root / place
        if not path.is_file():
            raise MissingError(f"FunnyBirds lacks the picture {path}: unpack it again.")
        return read_pixels(path, str(path))

    def sufficient(self, label: int) -> list[frozenset[str]]:
        """The minimal sufficient sets of parts of a class: those that no other class shares, and no part of which can be left out."""
        mine = self.classes[label]
        others = [parts for index, parts in enumerate(self.classes) if index != label]
        found: list[frozenset[str]] = []
        for size in range(1, len(self.parts) + 1):
            for chosen in map(frozenset, combinations(self.parts, size)):
                larger = any(smaller <= chosen for smaller in found)
                if not larger and not any(all(parts[name] == mine[name] for name in chosen) for parts in others):
                    found.append(chosen)
        return found
