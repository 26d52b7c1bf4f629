"""Rendering of maps: one scale per image, 8-bit images at the maps' resolution, perceptually uniform colors."""

import base64
import io
import math
from functools import cache

import numpy as np
from PIL import Image
from torch import Tensor

from cefam.errors import CefamError, near
from cefam.explanations.types import ConceptExplanation, Findings

COLORMAPS = ("viridis", "cividis", "inferno", "grey")  # all have evenly increasing lightness
PHOTOGRAPH_SIDE = 1024  # longest side of the photograph in a page, in pixels


def density(part: ConceptExplanation, stage: int, baseline: float) -> Tensor:
    """A map (H_l, W_l) in units common to all stages: the similarity S of a view that looks like this cell everywhere.

    A map's values are shares of S per cell, so they are multiplied by the number of cells. The map of an absent concept, with
    less evidence than the baseline (the average concept), is dimmed by exp(evidence - baseline).
    """
    dimmed = math.exp(min(0.0, part.evidence - baseline))
    region = part.maps[stage].float()
    return region * region.numel() * dimmed


def scale(explanation: Findings) -> float:
    """The largest density of the shown maps, the maximum of their common color scale; above 0."""
    largest = max((float(density(part, part.shown, explanation.baseline).max()) for part in explanation), default=0.0)
    return largest if largest > 0 else 1.0


def grey(values: Tensor, largest: float) -> Image.Image:
    """A map as an 8-bit image; ``largest`` and larger values become 255."""
    return Image.fromarray((values * (255 / largest)).round().clamp(0, 255).byte().cpu().numpy())


@cache
def palette(colormap: str) -> np.ndarray:
    """The colors of a color map, (256, 3), uint8."""
    if colormap not in COLORMAPS:
        raise CefamError(
            f"There is no color map {colormap!r}.{near(colormap, COLORMAPS)} There are {', '.join(COLORMAPS)}."
        )
    from matplotlib import colormaps

    colors = colormaps["gray" if colormap == "grey" else colormap](np.arange(256))[:, :3]
    shades: np.ndarray = (255 * colors).round().astype(np.uint8)
    return shades


def png(picture: Image.Image) -> str:
    """A picture as a PNG data URI."""
    return _uri(picture, "png", optimize=True)


def jpeg(picture: Image.Image) -> str:
    """A picture as a JPEG data URI, at most :data:`PHOTOGRAPH_SIDE` pixels a side."""
    small = picture.copy()
    small.thumbnail((PHOTOGRAPH_SIDE, PHOTOGRAPH_SIDE))
    return _uri(small, "jpeg", quality=88)


def _uri(picture: Image.Image, kind: str, **options: int | bool) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
