"""Region metrics as pure functions: EPG (eq. A2) and NRA (eq. 13, A1), pair by pair, batched on any device.

Every function takes regions (P, H, W) of floats and masks (P, H, W) of booleans and gives one double per pair. A pair
whose mask is empty or fills the image is undefined: NaN here, counted apart by the metric classes.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

BINS = 100  # the published grid: every hundredth of the pixels, and every pixel of the first hundredth


class Areas(NamedTuple):
    """Areas under the IoU curves of every pair, each (P,), double.

    ``predicted``: of the region; ``high``: of the mask itself (AUC_high); ``low``: the published closed form |M| / 2N
    (AUC_low); ``constant``: of a constant map under the very same ranks and weights, the chance level.
    """

    predicted: Tensor
    high: Tensor
    low: Tensor
    constant: Tensor


class IoUCurves(NamedTuple):
    """IoU at growing shares of the image, each (P, R): of the region, of the ideal region, of a random one."""

    predicted: Tensor
    ideal: Tensor
    random: Tensor


def _check(region: Tensor, mask: Tensor) -> None:
    if region.dim() != 3 or region.shape != mask.shape:
        raise ValueError(
            f"Regions and masks must both be (P, H, W), got {tuple(region.shape)} and {tuple(mask.shape)}: resize the "
            f"region to the mask first."
        )
    if mask.dtype != torch.bool:
        raise ValueError(
            f"Masks must be boolean, got {mask.dtype}: compare with the label, as in `index_map == label`."
        )


def _undefined(mask: Tensor) -> Tensor:
    inside = mask.flatten(1)
    return ~inside.any(dim=1) | inside.all(dim=1)


def energy_pointing_game(region: Tensor, mask: Tensor, normalize: Literal["min-max"] | None = "min-max") -> Tensor:
    """Share of a region's energy that lies inside its mask (EPG, eq. A2).

    Args:
        region: (P, H, W); with ``normalize=None`` it must not be negative.
        mask: (P, H, W), boolean, of the same size.
        normalize: "min-max" stretches every map to [0, 1] first (published program); ``None`` takes it raw (paper).

    Returns:
        (P,), double; 0 where there is no energy (a constant map under "min-max", an all-zero raw one), NaN where the
        mask is empty or full.

    Raises:
        ValueError: for shapes that differ or a mask that is not boolean.

    >>> region = torch.tensor([[[0.0, 1.0], [1.0, 2.0]]])
    >>> energy_pointing_game(region, torch.tensor([[[False, False], [False, True]]]))
    tensor([0.5000], dtype=torch.float64)
    """
    _check(region, mask)
    if normalize not in ("min-max", None):
        raise ValueError(f"normalize must be 'min-max' or None, got {normalize!r}.")
    energy = region.flatten(1)
    if normalize == "min-max" and energy.shape[1]:
        # The division by the range cancels in the ratio; only the shift matters.
        energy = energy - energy.amin(dim=1, keepdim=True)
    total, within = energy.sum(dim=1).double(), (energy * mask.flatten(1)).sum(dim=1).double()
    share = within / torch.where(total > 0, total, 1.0)
    return torch.where(_undefined(mask), torch.nan, share)


def _grid(num_pixels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ranks r that carry weight, and their weights w(r), by the published rule."""
    step = num_pixels // BINS
    if step == 0:  # fewer than 100 pixels: the published grid does not exist; every rank counts the same
        ranks = torch.arange(num_pixels, device=device)
        return ranks, torch.full((num_pixels,), 1 / num_pixels, dtype=torch.double, device=device)
    fine = torch.arange(step, device=device)
    coarse = torch.arange(step, num_pixels, step, device=device)
    weights = torch.cat(
        [
            torch.full((len(fine),), 1 / num_pixels, dtype=torch.double, device=device),
            torch.full((len(coarse),), 1 / BINS, dtype=torch.double, device=device),
        ]
    )
    return torch.cat([fine, coarse]), weights


def _true_positives(region: Tensor, mask: Tensor, ranks: Tensor) -> Tensor:
    """Mask pixels among the first r + 1 pixels by value, descending; a run of equal values enters evenly: (P, R).

    Not finite, where a region holds a value that is not: pixels cannot be ranked by it.
    """
    values = region.flatten(1)
    every = _ascending(values)
    inside = _ascending(torch.where(mask.flatten(1), values, -torch.inf))
    wanted = every[:, every.shape[1] - 1 - ranks].contiguous()
    # Pixels above the wanted value, and those not below it; any order among the equal ones would be arbitrary.
    above, not_below = (_counts(every, wanted, right) for right in (True, False))
    hits, hits_at_most = (_counts(inside, wanted, right) for right in (True, False))
    found = hits + (ranks + 1 - above) / (not_below - above) * (hits_at_most - hits)
    finite = every[:, :1].isfinite() & every[:, -1:].isfinite()  # NaN is sorted to the end
    return torch.where(finite, found, torch.nan)


def _ascending(values: Tensor) -> Tensor:
    """Rows sorted. NumPy's sort of values alone is several times faster than torch's, which carries indices along."""
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return values.sort(dim=1).values
    return torch.from_numpy(np.sort(values.detach().contiguous().numpy(), axis=1))


def _counts(ascending: Tensor, wanted: Tensor, right: bool) -> Tensor:
    """How many of the sorted values are greater than each wanted one (``right``), or not less: (P, R), double."""
    return (ascending.shape[1] - torch.searchsorted(ascending, wanted, right=right)).double()


def _iou(true_positives: Tensor, taken: Tensor, size: Tensor) -> Tensor:
    """IoU of ``taken`` pixels, of which ``true_positives`` lie in a mask of ``size`` pixels; all broadcast."""
    return true_positives / (taken - true_positives + size)


def _ideal(ranks: Tensor, size: Tensor) -> Tensor:
    ranks = ranks.double()
    return torch.where(ranks < size, ranks / size, size / ranks)


def region_areas(region: Tensor, mask: Tensor) -> Areas:
    """Areas under the IoU curve of each region, of its ideal, and of chance (AUC, AUC_high, AUC_low of eq. 13).

    The grid of ranks, its weights and the ideal curve are the published program's; equal pixels are resolved by their
    expectation, which the published program leaves to an unstable sort.

    Args:
        region: (P, H, W).
        mask: (P, H, W), boolean.
    """
    _check(region, mask)
    num_pixels = mask[0].numel() if len(mask) else 0
    if not num_pixels:
        return Areas(*(region.new_zeros(len(region), dtype=torch.double) for _ in Areas._fields))
    size = mask.flatten(1).float().sum(dim=1, keepdim=True).double()
    ranks, weights = _grid(num_pixels, region.device)
    taken = (ranks + 1).double()
    predicted = _iou(_true_positives(region, mask, ranks), taken, size)
    constant = _iou(taken * size / num_pixels, taken, size)
    return Areas(
        predicted=predicted @ weights,
        high=_ideal(ranks, size.clamp_min(1)) @ weights,
        low=size.squeeze(1) / (2 * num_pixels),
        constant=constant @ weights,
    )


def nra_from_areas(areas: Areas, mask: Tensor, chance: Literal["published", "constant"] = "published") -> Tensor:
    """NRA (P,) of areas that are known already; arguments and result as in :func:`normalized_region_accuracy`."""
    if chance == "published":
        value = (areas.predicted - areas.low).clamp_min(0) / (areas.high - areas.low)
    elif chance == "constant":
        value = (areas.predicted - areas.constant) / (areas.high - areas.constant)
    else:
        raise ValueError(f"chance must be 'published' or 'constant', got {chance!r}.")
    return torch.where(_undefined(mask), torch.nan, value)


def normalized_region_accuracy(
    region: Tensor, mask: Tensor, chance: Literal["published", "constant"] = "published"
) -> Tensor:
    """Normalized Region Accuracy (eq. 13): 1 for a region that ranks all pixels of its mask first.

    Args:
        region: (P, H, W); only the order of its values matters, equal values share their ranks.
        mask: (P, H, W), boolean.
        chance: what counts as 0. "published": the area |M| / 2N, below what a random map reaches (it scores about 0.1 to
            0.16), clamped at 0. "constant": the area of a constant map under the same ranks and weights, not clamped:
            uninformative maps score 0 on average, misleading ones below.

    Returns:
        (P,), double; NaN where the mask is empty or full, or the region holds values that are not finite.

    Raises:
        ValueError: for shapes that differ or a mask that is not boolean.

    >>> region = torch.zeros(1, 10, 10)
    >>> region[0, :2, :5] = torch.tensor([[5.0, 4, 4, 3, 3], [3, 2, 2, 1, 1]])
    >>> mask = torch.zeros(1, 10, 10, dtype=torch.bool)
    >>> mask[0, :3, :4] = True
    >>> round(normalized_region_accuracy(region, mask).item(), 7)
    0.6591151
    """
    return nra_from_areas(region_areas(region, mask), mask, chance)


def iou_curves(region: Tensor, mask: Tensor) -> IoUCurves:
    """The three curves of the paper's Fig. 4, at every hundredth of the image (ranks r with r % step == 0).

    Args:
        region: (P, H, W).
        mask: (P, H, W), boolean.

    Returns:
        Three (P, R) doubles: the region's IoU with its first r + 1 pixels; the ideal, r / |M| up to |M| and |M| / r
        after; the published random line (r / N) (|M| / N).
    """
    _check(region, mask)
    num_pixels = mask[0].numel()
    step = max(num_pixels // BINS, 1)
    ranks = torch.arange(0, num_pixels, step, device=region.device)
    size = mask.flatten(1).sum(dim=1, keepdim=True).double()
    predicted = _iou(_true_positives(region, mask, ranks), (ranks + 1).double(), size)
    return IoUCurves(predicted, _ideal(ranks, size), ranks / num_pixels * size / num_pixels)
