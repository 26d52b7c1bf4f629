"""The geometric view shared by both towers, and the mapping of regions back to the photograph.

The crop is chosen once per photograph. Both towers get the same crop, each with its own resizing and normalization
(:class:`Preprocessing`); with separate crops, the translator would be trained on a different image than it explains.
torchvision takes over a second to import, so it is imported only where a photograph is cropped.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cefam.errors import CefamError


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of the view for one tower: scale to [0, 1], resize if the size differs, normalize.

    Args:
        mean: per channel, of pixels in [0, 1]; empty: no normalization.
        std: per channel, as ``mean``.
        size: input size (H, W) of the tower, or ``None`` for any size.
        interpolation: "bilinear" or "bicubic", for the resize, antialiased.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: tuple[int, int] | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or any(value <= 0 for value in self.std):
            raise CefamError(
                f"mean and std need the same length and positive std, got mean={self.mean}, std={self.std}."
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise CefamError(f"interpolation must be 'bilinear' or 'bicubic', got {self.interpolation!r}.")

    def __call__(self, images: Tensor) -> Tensor:
        """Views (B, 3, H, W), uint8 or floats in [0, 1] -> the tower's input, float."""
        if images.dim() != 4:
            raise CefamError(f"Images must be (B, 3, H, W), got {tuple(images.shape)}.")
        if images.dtype == torch.uint8:
            images = images.float() / 255
        if not images.is_floating_point():
            raise CefamError(f"Images must be uint8 or floats in [0, 1], got {images.dtype}.")
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode=self.interpolation, antialias=True, align_corners=False)
            images = images.clamp(0, 1)  # bicubic overshoots
        if self.mean:
            mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
            images = (images - mean) / std
        return images

    def check_channels(self, channels: int) -> None:
        """Check that the normalization fits the tower's number of channels."""
        if len(self.mean) not in (0, 1, channels):
            raise CefamError(
                f"mean and std need one value per channel of {channels}, got mean={self.mean}, std={self.std}."
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields in plain types, as stored in artefacts."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


THIN = 16  # maximum aspect ratio; longer photographs are cropped before resizing, to bound memory
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Placement(NamedTuple):
    """Position of a view in its photograph, in (fractional) photograph pixels."""

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True)
class EvaluationView:
    """The evaluation view: resize the short side, then crop the center; both steps are optional.

    Args:
        resize: length of the short side after resizing; ``None``: no resizing (Broden's images already have 224 pixels).
        crop: side of the central square crop; ``None``: no crop.
    """

    resize: int | None = 256
    crop: int | None = 224

    def __post_init__(self) -> None:
        for name, value in (("resize", self.resize), ("crop", self.crop)):
            if value is not None and value < 1:
                raise CefamError(f"{name} must be positive or null, got {value}.")
        if self.resize and self.crop and self.crop > self.resize:
            raise CefamError(
                f"A crop of {self.crop} does not fit into a short side of {self.resize}: enlarge `resize`."
            )

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None:
            return height, width
        short = min(height, width)
        return int(self.resize * height / short), int(self.resize * width / short)  # torchvision's Resize

    def _crop(self, height: int, width: int) -> tuple[int, int, int, int]:
        if self.crop is None:
            return 0, 0, height, width
        if min(height, width) < self.crop:
            raise CefamError(
                f"A picture of {height} x {width} is smaller than the crop of {self.crop}: set `resize` to at least {self.crop}."
            )
        return round((height - self.crop) / 2), round((width - self.crop) / 2), self.crop, self.crop

    def _middle(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The part to resize (top, left, height, width): the middle of very thin photographs, which contains the crop."""
        if self.resize is None or self.crop is None:
            return 0, 0, height, width
        longest = THIN * min(height, width)
        cut = [(side - min(side, longest)) // 2 for side in (height, width)]
        return cut[0], cut[1], height - 2 * cut[0], width - 2 * cut[1]

    def _apply(self, pixels: Tensor, interpolation: str) -> Tensor:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import crop, resize

        pixels = crop(pixels, *self._middle(*pixels.shape[-2:]))
        size = self._resized(*pixels.shape[-2:])
        if size != tuple(pixels.shape[-2:]):
            mode = InterpolationMode(interpolation)
            pixels = resize(pixels, list(size), mode, antialias=mode != InterpolationMode.NEAREST)
        cut: Tensor = crop(pixels, *self._crop(*size))
        return cut

    def __call__(self, pixels: Tensor) -> Tensor:
        """The view of a photograph's pixels (3, H, W), uint8."""
        return self._apply(pixels, "bilinear")

    def mask(self, index_map: Tensor, cut: str = "nearest") -> Tensor:
        """The same view of the photograph's index map (H, W); labels are never interpolated.

        Args:
            index_map: integers.
            cut: "nearest"; or "cover", for a map with one label: resized like the photograph, and partly covered pixels are
                inside (as in the published program for ImageNet-S).
        """
        if cut == "cover":
            label = index_map.max()
            covered = self._apply((index_map == label).float().unsqueeze(0), "bilinear").squeeze(0) > 0
            return covered * label
        return self._apply(index_map.unsqueeze(0), "nearest").squeeze(0)

    def cuts(self, height: int, width: int) -> bool:
        """Whether the view crops a photograph of this size."""
        resized = self._resized(height, width)
        return self._crop(*resized)[2:] != resized

    def placement(self, height: int, width: int) -> Placement:
        """Position of the view in a photograph of this size."""
        above, before, height, width = self._middle(height, width)
        resized = self._resized(height, width)
        top, left, tall, wide = self._crop(*resized)
        vertical, horizontal = height / resized[0], width / resized[1]
        return Placement(above + top * vertical, before + left * horizontal, tall * vertical, wide * horizontal)


def usual_view(picture: Image.Image, side: int) -> EvaluationView:
    """The view for a tower with input size ``side``: the whole photograph if it has that size, else ImageNet's evaluation crop.

    >>> usual_view(Image.new("RGB", (640, 480)), 224), usual_view(Image.new("RGB", (96, 96)), 96)
    (EvaluationView(resize=256, crop=224), EvaluationView(resize=None, crop=None))
    """
    return EvaluationView(None, None) if picture.size == (side, side) else EvaluationView(round(side * 256 / 224), side)


def training_view(size: int = 224, flip: float = 0.5) -> Callable[[Tensor], Tensor]:
    """The random view of the published program: RandomResizedCrop with torchvision's defaults, then a random flip."""
    from torchvision.transforms import v2

    view: Callable[[Tensor], Tensor] = v2.Compose(
        [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(flip)]
    )
    return view


def drawn(view: Callable[[Tensor], Tensor], pixels: Tensor, stream: str) -> Tensor:
    """A random view of a photograph, seeded only by the name ``stream``.

    The global random state is not used: it is equal in all processes, and depends on workers and batches.
    """
    with torch.random.fork_rng(devices=[]):
        # `random.Random` hashes the name, so that similar names get uncorrelated seeds.
        # Only the CPU generator is seeded: seeding all devices takes longer than cropping the view.
        torch.default_generator.manual_seed(random.Random(stream).getrandbits(63))
        return view(pixels)


def to_photograph(region: Tensor, placement: Placement, size: Sequence[int]) -> Tensor:
    """Map regions of a view back to the photograph it was cut from.

    Args:
        region: (P, h, w), at any resolution, covering the whole view.
        placement: position of the view in the photograph.
        size: (H, W) of the photograph.

    Returns:
        (P, H, W); 0 outside the view, bilinear inside.
    """
    height, width = size
    rows = (torch.arange(height, device=region.device) + 0.5 - placement.top) / placement.height * 2 - 1
    columns = (torch.arange(width, device=region.device) + 0.5 - placement.left) / placement.width * 2 - 1
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).to(region.dtype)
    sampled = F.grid_sample(
        region.unsqueeze(1), grid.expand(len(region), -1, -1, -1), padding_mode="border", align_corners=False
    ).squeeze(1)
    inside = (grid.abs() <= 1).all(dim=-1)
    return sampled * inside


def resize_regions(region: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of maps (P, h, w) -> (P, H, W), half-pixel centers, no antialiasing.

    Pixels interpolated between equal cells are exactly equal, so that they are ties for NRA. For this, the interpolation uses
    double precision: its processor-dependent rounding errors disappear when the result is rounded to the input's type.
    """
    if tuple(region.shape[-2:]) == tuple(size):
        return region
    resized = F.interpolate(region.unsqueeze(1).double(), tuple(size), mode="bilinear", align_corners=False)
    # Many values lie halfway between two single-precision numbers; the factor makes them all round to the same side.
    return resized.squeeze(1).mul_(1 + 2**-40).to(region.dtype)
