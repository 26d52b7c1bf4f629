"""Maps as they are shown: one scale per image, 8-bit images at the maps' own resolution, colors that are even to the eye."""

import base64
import io
import math
from functools import cache

import numpy as np
from PIL import Image
from torch import Tensor

from cefam.errors import CefamError, near
from cefam.explanations.photograph import Photograph
from cefam.explanations.types import ConceptExplanation, Findings

COLORMAPS = ("viridis", "cividis", "inferno", "grey")  # lightness grows evenly in all of them
PHOTOGRAPH_SIDE = 1024  # of the picture in a page


def density(part: ConceptExplanation, stage: int, baseline: float) -> Tensor:
    """A map in units that all stages share: the similarity S of a view that looked like this place everywhere (H_l, W_l).

    A map's values are shares of S per cell, so they are multiplied by the number of cells. The map of a concept below the average one
    is dimmed by exp(S - baseline), how much less probable it is: what is absent must not light up.
    """
    dimmed = math.exp(min(0.0, part.similarity - baseline))
    region = part.maps[stage].float()
    return region * region.numel() * dimmed


def scale(explanation: Findings) -> float:
    """The largest density of the shown maps, which all are drawn against; above 0."""
    largest = max((float(density(part, part.shown, explanation.baseline).max()) for part in explanation), default=0.0)
    return largest if largest > 0 else 1.0


def grey(values: Tensor, largest: float) -> Image.Image:
    """A map as an 8-bit image: 255 is ``largest``, and what is above it."""
    return Image.fromarray((values * (255 / largest)).round().clamp(0, 255).byte().cpu().numpy())


def colored(values: Tensor, largest: float, colormap: str) -> Image.Image:
    """A map as an 8-bit palette image in colors."""
    picture = grey(values, largest).convert("P")
    picture.putpalette(palette(colormap).tobytes())
    return picture


@cache
def palette(colormap: str) -> np.ndarray:
    """The colors of a map, (256, 3), uint8.

    Raises:
        CefamError: for an unknown one.
    """
    if colormap not in COLORMAPS:
        raise CefamError(
            f"There is no color map {colormap!r}.{near(colormap, COLORMAPS)} There are {', '.join(COLORMAPS)}."
        )
    from matplotlib import colormaps

    colors = colormaps["gray" if colormap == "grey" else colormap](np.arange(256))[:, :3]
    shades: np.ndarray = (255 * colors).round().astype(np.uint8)
    return shades


def png(picture: Image.Image) -> str:
    """A picture as a data URI, without loss."""
    return _uri(picture, "png", optimize=True)


def jpeg(photograph: Photograph) -> str:
    """The photograph as a data URI, at most ``PHOTOGRAPH_SIDE`` long."""
    picture = photograph.picture.copy()
    picture.thumbnail((PHOTOGRAPH_SIDE, PHOTOGRAPH_SIDE))
    return _uri(picture, "jpeg", quality=88)


def _uri(picture: Image.Image, kind: str, **options: int | bool) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
