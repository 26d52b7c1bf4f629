"""A photograph with one region as a spotlight: the rest darkened, the region's contour drawn, the network's view framed."""

import numpy as np
from PIL import Image, ImageDraw

from cefam.explanations.photograph import Photograph
from cefam.explanations.types import HALF, ConceptExplanation

DARK = 0.25  # brightness outside of the region
EDGE = (0.25, HALF)  # share of the region's maximum at which the light begins, and is full
CONTOUR, FRAME = (255, 230, 80), (235, 235, 235)
FRAMED = 0.98  # a view that covers less of a side than this is framed


def spotlight(photograph: Photograph, part: ConceptExplanation | None, side: int) -> Image.Image:
    """The photograph with a concept's region as a spotlight, on the map's own scale; without a region, the photograph."""
    height, width = photograph.size
    share = side / max(height, width)
    small = photograph.picture.resize(
        (max(1, round(share * width)), max(1, round(share * height))), Image.Resampling.BICUBIC
    )
    if part is not None:
        region = photograph.to_size(part.maps[part.shown].float().unsqueeze(0), max(small.size))[0].cpu().numpy()
        region = np.asarray(Image.fromarray(region).resize(small.size, Image.Resampling.BILINEAR))
        if region.max() > 0:
            small = _lit(small, region / region.max())
    return _framed(small, photograph)


def _lit(picture: Image.Image, region: np.ndarray) -> Image.Image:
    low, high = EDGE
    light = DARK + (1 - DARK) * np.clip((region - low) / (high - low), 0, 1)
    pixels = np.asarray(picture).astype(np.float32) * light[..., None]
    inside = region > HALF
    border = np.zeros_like(inside)
    for axis in (0, 1):
        change = np.diff(inside, axis=axis)
        for first in (0, 1):
            part = [slice(None), slice(None)]
            part[axis] = slice(first, inside.shape[axis] - 1 + first)
            border[tuple(part)] |= change
    pixels[border] = CONTOUR
    return Image.fromarray(pixels.round().astype(np.uint8))


def _framed(picture: Image.Image, photograph: Photograph) -> Image.Image:
    """Draw the border of the part of the photograph that the networks see, if it is not all of it."""
    place, (height, width) = photograph.placement, photograph.size
    if place.height >= FRAMED * height and place.width >= FRAMED * width:
        return picture
    across, down = picture.width / width, picture.height / height
    corners = (
        place.left * across,
        place.top * down,
        (place.left + place.width) * across - 1,
        (place.top + place.height) * down - 1,
    )
    ImageDraw.Draw(picture).rectangle(corners, outline=FRAME, width=max(1, picture.width // 250))
    return picture
