"""Decoding of photographs and masks: orientation and pixel formats."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cefam.errors import CefamError

if TYPE_CHECKING:  # data preparation does not need torch
    from torch import Tensor


def read_pixels(source: bytes | Path, name: str) -> "Tensor":
    """Decode a photograph to uint8 pixels (3, H, W), like :func:`open_picture` and :func:`to_pixels`, but faster.

    torchvision decodes upright RGB JPEG files in two thirds of Pillow's time; Pillow decodes all other files, and those
    that torchvision cannot decode.
    """
    import torch
    from torchvision.io import decode_jpeg

    with _reading(name):
        content = source if isinstance(source, bytes) else source.read_bytes()
        picture = Image.open(io.BytesIO(content))  # reads only the header
        if picture.format == "JPEG" and picture.mode == "RGB" and _orientation(picture) == 1:
            with suppress(RuntimeError, AttributeError):  # damaged file, or torchvision without JPEG support
                pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
                return pixels
    return to_pixels(open_picture(content, name))


def open_picture(source: bytes | Path | Any, name: str) -> Image.Image:
    """Decode the first frame of a photograph and apply its EXIF orientation."""
    picture: Image.Image = _decoded(source, name, upright=True)
    if picture.mode == "I" and picture.format in ("PPM", "PNG"):  # these formats have at most 16 bits
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16))
    _check_depth(picture, f"The image {name}")
    return picture


def _check_depth(picture: Image.Image, name: str) -> None:
    if picture.mode in ("I", "F"):
        raise CefamError(
            f"{name} has 32-bit pixels (mode {picture.mode}), whose range is not known: save it with 8 or 16 bits."
        )


def open_mask(source: bytes | Path, name: str) -> np.ndarray:
    """Decode a mask to label numbers (H, W), int32, ignoring its EXIF orientation.

    One-channel pixels (1, 8, 16 or 32 bits, or a palette) are label numbers; RGB pixels encode R + 256 G (Broden, ImageNet-S).
    """
    picture = _decoded(source, name)
    if picture.mode == "RGB":
        pixels = np.asarray(picture).astype(np.int32)
        if pixels[..., 2].any():
            raise CefamError(
                f"The mask {name} is RGB with a blue channel, so it does not hold R + 256 G (colors, or grey stored as RGB): save its "
                f"label numbers as one channel of 8 or 16 bits."
            )
        numbers: np.ndarray = pixels[..., 0] + 256 * pixels[..., 1]
        return numbers
    if picture.mode in ("1", "L", "P", "I") or picture.mode.startswith("I;16"):
        return np.asarray(picture).astype(np.int32)
    raise CefamError(
        f"The mask {name} is encoded as {picture.mode!r}: save its label numbers as one channel of 8 or 16 bits, as a palette, or as RGB "
        f"with R + 256 G."
    )


def _decoded(source: bytes | Path | Any, name: str, upright: bool = False) -> Image.Image:
    with _reading(name):
        picture: Image.Image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        picture.load()
        if upright:
            ImageOps.exif_transpose(picture, in_place=True)  # in place, to avoid copying upright pictures
    return picture


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:
        raise CefamError(
            f"The image {name} cannot be read (it is not an image in a known format): replace it or remove it from the data set."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise CefamError(
            f"The image {name} cannot be read ({error}): replace it or remove it from the data set."
        ) from error


def turned(picture: Image.Image) -> bool:
    """Whether the EXIF orientation of a stored picture swaps its height and width."""
    return _orientation(picture) in (5, 6, 7, 8)


def _orientation(picture: Image.Image) -> Any:
    """The EXIF orientation, not validated; 1 means upright."""
    return picture.getexif().get(ExifTags.Base.Orientation, 1)


def to_pixels(picture: Image.Image) -> "Tensor":
    """Convert a picture to uint8 pixels (3, H, W); 16-bit values are scaled to 8 bits."""
    from torchvision.transforms.functional import pil_to_tensor

    _check_depth(picture, getattr(picture, "filename", "") or "A picture")
    if picture.mode.startswith("I;16"):  # Pillow's own conversion clips values above 255
        picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    if picture.mode != "RGB":  # `convert` would copy RGB pictures needlessly
        picture = picture.convert("RGB")
    pixels: Tensor = pil_to_tensor(picture)
    return pixels


def to_grey(images: "Tensor") -> "Tensor":
    """Luminance (Rec. 601) of images (B, 3, H, W), uint8 or floats in [0, 1]: (B, 1, H, W), floats in [0, 1]."""
    pixels = images.float() / (1 if images.is_floating_point() else 255)
    return (pixels * pixels.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
