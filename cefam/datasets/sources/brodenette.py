"""Scenes of Brodenette, drawn on demand."""

import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from cefam.datasets.contract import Mask, Sample
from cefam.datasets.sources.base import Source
from cefam.datasets.sources.broden import MASK_CATEGORIES
from cefam.errors import CefamError


class Brodenette(Source):
    """The first scenes of a split, with their masks.

    Args:
        place: the split: train, val, test, captioned, retrieval, evaluation.
        masks: mask categories; "composition" is also available.
        count: number of scenes.
    """

    def __init__(self, place: str, masks: Sequence[str] = MASK_CATEGORIES, count: int = 200) -> None:
        from cefam.brodenette import COMPOSITIONS, LABELS, describe, draw

        if count < 1:
            raise CefamError(f"count must be at least 1, got {count}.")
        self.split, self.masks, self.count = place, tuple(masks), count
        self.name = f"brodenette: {place}"
        self.labels = [asdict(label) for label in (*LABELS, *(COMPOSITIONS if "composition" in masks else ()))]
        known = draw(describe(place, 0)).masks
        unknown = sorted(set(masks) - set(known))
        if unknown:
            raise CefamError(f"Brodenette has no masks of {', '.join(unknown)}; it has those of {', '.join(known)}.")

    def __len__(self) -> int:
        return self.count

    def stamp(self, index: int) -> Any:
        """The index, since scenes are deterministic."""
        return index

    def sample(self, index: int) -> Sample:
        """One scene."""
        from cefam.brodenette import CLASSES, describe, draw

        scene = describe(self.split, index)
        drawing = draw(scene)
        image = io.BytesIO()
        Image.fromarray(drawing.image).save(image, format="PNG", compress_level=1)
        label = None if scene.label is None else CLASSES.index(scene.label)
        masks = tuple(Mask(category, drawing.masks[category]) for category in self.masks)
        return Sample(f"{scene.name}.png", image.getvalue(), ".png", label, masks)
