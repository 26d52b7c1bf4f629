"""Photograph: a picture, the view that is passed to the networks, and the view's position in the picture."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cefam.errors import CefamWarning
from cefam.images.pictures import open_picture, to_pixels
from cefam.images.views import EvaluationView, Placement, to_photograph, usual_view

LONG_SIDE = 4096  # pixels; larger photographs are reduced first


@dataclass(frozen=True, eq=False)
class Photograph:
    """A picture to be explained.

    Args:
        name: display name.
        pixels: the picture (3, H, W), uint8.
        view: network input (3, h, w): uint8, or preprocessed for the classifier.
        placement: position of the view in the picture.

    >>> photograph = Photograph.of(Image.new("RGB", (64, 48)), EvaluationView(32, 32), "grey")
    >>> tuple(photograph.pixels.shape), tuple(photograph.view.shape), photograph.to_size(torch.ones(1, 4, 4)).shape
    ((3, 48, 64), (3, 32, 32), torch.Size([1, 48, 64]))
    """

    name: str
    pixels: Tensor
    view: Tensor
    placement: Placement

    @classmethod
    def of(cls, picture: Image.Image, view: EvaluationView | int, name: str) -> "Photograph":
        """Create a photograph from an open picture.

        Args:
            picture: a picture of any size; one of more than 4,096 pixels a side is reduced, with a warning.
            view: how the view is cut; a number: the usual view of this many pixels a side
                (:func:`cefam.images.views.usual_view`).
            name: display name.
        """
        view = usual_view(picture, view) if isinstance(view, int) else view
        if max(picture.size) > LONG_SIDE:
            width, height = picture.size
            picture = picture.copy()
            picture.thumbnail((LONG_SIDE, LONG_SIDE))
            message = f"{name} has {width} x {height} pixels: it is reduced to {picture.width} x {picture.height}."
            warnings.warn(message, CefamWarning, stacklevel=2)
        pixels = to_pixels(picture)
        return cls(name, pixels, view(pixels), view.placement(*pixels.shape[-2:]))

    @classmethod
    def open(cls, path: str | Path, view: EvaluationView | int, name: str | None = None) -> "Photograph":
        """Read a file (the first frame of an animation); ``name`` defaults to the file's name.

        Raises:
            CefamError: if the file cannot be read.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ``of`` reduces it, with a warning
            picture = open_picture(Path(path), str(path))
            with Image.open(path) as stored:
                frames = getattr(stored, "n_frames", 1)
        if frames > 1:
            message = f"{path} has {frames} frames: the first one is explained."
            warnings.warn(message, CefamWarning, stacklevel=2)
        return cls.of(picture, view, name or Path(path).name)

    @classmethod
    def of_view(cls, view: Tensor, name: str) -> "Photograph":
        """Use a view (3, h, w) as its own photograph; values outside [0, 1] are rescaled for display."""
        pixels = view.detach().cpu()
        if pixels.is_floating_point():
            low, high = float(pixels.min()), float(pixels.max())
            if low < 0 or high > 1:
                pixels = (pixels - low) / max(high - low, 1e-12)
            pixels = (pixels * 255).round().byte()
        if len(pixels) != 3:
            pixels = pixels[:1].expand(3, -1, -1)
        height, width = pixels.shape[-2:]
        return cls(name, pixels, view, Placement(0.0, 0.0, float(height), float(width)))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    @cached_property
    def picture(self) -> Image.Image:
        """The picture, RGB."""
        return Image.fromarray(self.pixels.permute(1, 2, 0).numpy())

    def to_size(self, regions: Tensor, limit: int | None = None) -> Tensor:
        """Map regions of the view (P, h, w) to the photograph (P, H, W), reduced to ``limit`` pixels; 0 outside the view."""
        share = min(1.0, limit / max(self.size)) if limit else 1.0
        size = [max(1, round(share * side)) for side in self.size]
        return to_photograph(regions, Placement(*(share * value for value in self.placement)), size)


def stacked(photographs: Sequence[Photograph]) -> Tensor:
    """The views of several photographs (B, 3, h, w)."""
    return torch.stack([photograph.view for photograph in photographs])
