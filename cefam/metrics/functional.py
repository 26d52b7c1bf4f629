"""Region metrics as pure functions: EPG (eq. A2) and NRA (eq. 13, A1), pair by pair, batched on any device.

The metrics take regions (P, H, W) of floats and masks (P, H, W) of booleans and return one double per pair. A pair whose
mask is empty or fills the image, or whose region holds NaN or infinite values, is undefined: the functions return NaN, and
the metric classes count such pairs separately.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cefam.errors import CefamError

BINS = 100  # the published grid: every hundredth of the pixels, and every pixel of the first hundredth


class Bounds(NamedTuple):
    """Reference areas under IoU curves, computed from the mask only, each (P,), double; NaN if the mask is empty or full.

    ``high``: area of the mask itself (AUC_high); ``low``: the published closed form |M| / 2N (AUC_low); ``constant``: area
    of a constant map with the same ranks and weights (chance level).
    """

    high: Tensor
    low: Tensor
    constant: Tensor


class IoUCurves(NamedTuple):
    """IoU at increasing shares of the image, each (P, R), of the region, the ideal region and a random region."""

    predicted: Tensor
    ideal: Tensor
    random: Tensor


def _check(region: Tensor, mask: Tensor) -> None:
    if region.dim() != 3 or region.shape != mask.shape:
        raise CefamError(
            f"Regions and masks must both be (P, H, W), got {tuple(region.shape)} and {tuple(mask.shape)}: resize the "
            f"region to the mask first."
        )
    if mask.dtype != torch.bool:
        raise CefamError(
            f"Masks must be boolean, got {mask.dtype}: compare with the label, as in `index_map == label`."
        )


def _size(mask: Tensor) -> Tensor:
    """Pixels of each mask (P,), double."""
    return mask.flatten(1).view(torch.uint8).sum(dim=1, dtype=torch.int32).double()


def _defined(size: Tensor, num_pixels: int) -> Tensor:
    return (size > 0) & (size < num_pixels)


def _only_defined(value: Tensor, region: Tensor, mask: Tensor) -> Tensor:
    """``value`` (P,), set to NaN if the mask is empty or full, or the region is not finite."""
    finite = region.flatten(1).isfinite().all(dim=1)
    return torch.where(finite & _defined(_size(mask), mask[0].numel() if len(mask) else 0), value, torch.nan)


def energy_pointing_game(region: Tensor, mask: Tensor, normalize: Literal["min-max"] | None = "min-max") -> Tensor:
    """Share of a region's energy that lies inside its mask (EPG, eq. A2).

    Args:
        region: (P, H, W); with ``normalize=None``, negative values count as 0.
        mask: (P, H, W), boolean, of the same size.
        normalize: "min-max" scales every map to [0, 1] first (published program); ``None`` uses the raw map (paper).

    Returns:
        (P,), double; 0 for maps without energy (constant with "min-max", no positive value with ``None``), NaN if the mask
        is empty or full, or the region is not finite.

    Raises:
        CefamError: for shapes that differ or a mask that is not boolean.

    >>> region = torch.tensor([[[0.0, 1.0], [1.0, 2.0]]])
    >>> energy_pointing_game(region, torch.tensor([[[False, False], [False, True]]]))
    tensor([0.5000], dtype=torch.float64)
    """
    _check(region, mask)
    if normalize not in ("min-max", None):
        raise CefamError(f"normalize must be 'min-max' or None, got {normalize!r}.")
    # Half precision may overflow.
    energy = region.flatten(1).to(torch.promote_types(region.dtype, torch.float32))
    if normalize is None:
        energy = energy.clamp_min(0)
    elif energy.shape[1]:
        # The division by the range cancels in the ratio; only the shift matters.
        energy = energy - energy.amin(dim=1, keepdim=True)
    # Double precision keeps differences from the summation order, which depends on the batch, below the recorded precision.
    total = energy.sum(dim=1, dtype=torch.double)
    within = (energy * mask.flatten(1)).sum(dim=1, dtype=torch.double)
    share = within / torch.where(total > 0, total, 1.0)
    return _only_defined(share, region, mask)


def published_energy(energy: Tensor, nra: Tensor) -> Tensor:
    """EPG as recorded by the published program: 0 if the NRA of the region is 0. All (P,)."""
    return torch.where(nra == 0, 0.0, energy)


def _grid(num_pixels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ranks r with non-zero weight, and their weights w(r), as in the published program."""
    step = num_pixels // BINS
    if step == 0:  # fewer than 100 pixels: there is no published grid; all ranks have equal weight
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


def _true_positives(region: Tensor, mask: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Number of mask pixels among the r + 1 highest pixels (P, R), for ranks (R,) or (P, R), and the mask sizes (P, 1).

    Ties are resolved by expectation. The number is NaN if a region has non-finite values, which cannot be ranked.
    """
    values = region.detach().flatten(1)
    every = _sorted(values.clone())
    inside = _sorted(torch.where(mask.flatten(1), values, -torch.inf))
    place = every.shape[1] - 1 - ranks
    wanted = every.index_select(1, place) if place.dim() == 1 else every.gather(1, place)
    # Numbers of pixels below the wanted value, and not above it; the difference is the number of ties.
    below, not_above = (torch.searchsorted(every, wanted, right=right) for right in (False, True))
    missed, missed_at_most = (torch.searchsorted(inside, wanted, right=right) for right in (False, True))
    taken = ranks + 1 - (every.shape[1] - not_above)  # ties among the first r + 1 pixels
    found = taken.double() / (not_above - below) * (missed_at_most - missed) + (every.shape[1] - missed_at_most)
    finite = every[:, :1].isfinite() & every[:, -1:].isfinite()  # NaN is sorted to the end
    outside = torch.searchsorted(inside, inside.new_full((len(inside), 1), -torch.inf), right=True)
    return torch.where(finite, found, torch.nan), every.shape[1] - outside


def _sorted(values: Tensor) -> Tensor:
    """Sort rows in ascending order; on the CPU in place with NumPy, which is faster than torch because it sorts no indices."""
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return values.sort(dim=1).values
    values.numpy().sort(axis=1)
    return values


def _iou(true_positives: Tensor, taken: Tensor, size: Tensor) -> Tensor:
    """IoU of ``taken`` pixels, of which ``true_positives`` lie in a mask of ``size`` pixels; all broadcast."""
    return true_positives / (taken - true_positives + size)


def _ideal(ranks: Tensor, size: Tensor) -> Tensor:
    ranks = ranks.double()
    return torch.where(ranks < size, ranks / size, size / ranks)


def region_area(region: Tensor, mask: Tensor) -> Tensor:
    """Area under the IoU curve of each region (AUC of eq. 13): (P,), double.

    Ranks and weights follow the published program. Ties are resolved by expectation; the published program leaves their
    order to an unstable sort.
    """
    _check(region, mask)
    if not mask.numel():
        return region.new_zeros(len(region), dtype=torch.double)
    ranks, weights = _grid(mask[0].numel(), region.device)
    true_positives, size = _true_positives(region, mask, ranks)
    # Not a matrix product: its summation order depends on the number of rows.
    return (_iou(true_positives, (ranks + 1).double(), size) * weights).sum(dim=1)


def area_bounds(mask: Tensor) -> Bounds:
    """Reference areas for NRA (:class:`Bounds`); the ideal curve follows the published program."""
    num_pixels, size = mask.shape[1:].numel(), _size(mask)
    if not mask.numel():
        return Bounds(size, size, size)
    ranks, weights = _grid(num_pixels, mask.device)
    taken, each = (ranks + 1).double(), size.unsqueeze(1)
    high = (_ideal(ranks, each.clamp_min(1)) * weights).sum(dim=1)
    low = size / (2 * num_pixels)
    constant = (_iou(taken * each / num_pixels, taken, each) * weights).sum(dim=1)
    defined = _defined(size, num_pixels)
    return Bounds(*(torch.where(defined, area, torch.nan) for area in (high, low, constant)))


def nra_from_areas(predicted: Tensor, bounds: Bounds, chance: Literal["published", "constant"] = "published") -> Tensor:
    """NRA from precomputed areas of broadcastable shapes; see :func:`normalized_region_accuracy`."""
    if chance == "published":
        return (predicted - bounds.low).clamp_min(0) / (bounds.high - bounds.low)
    if chance == "constant":
        return (predicted - bounds.constant) / (bounds.high - bounds.constant)
    raise CefamError(f"chance must be 'published' or 'constant', got {chance!r}.")


def normalized_region_accuracy(
    region: Tensor, mask: Tensor, chance: Literal["published", "constant"] = "published"
) -> Tensor:
    """Normalized Region Accuracy (eq. 13): 1 for a region that ranks all pixels of its mask first.

    Args:
        region: (P, H, W); only the order of its values matters; ties are resolved by expectation.
        mask: (P, H, W), boolean.
        chance: the area that scores 0. "published": |M| / 2N, clamped at 0; random maps score about 0.1 to 0.16.
            "constant": the area of a constant map with the same ranks and weights, not clamped; uninformative maps score 0
            on average, misleading maps score below 0.

    Returns:
        (P,), double; NaN if the mask is empty or full, or the region is not finite.

    Raises:
        CefamError: for shapes that differ or a mask that is not boolean.

    >>> region = torch.zeros(1, 10, 10)
    >>> region[0, :2, :5] = torch.tensor([[5.0, 4, 4, 3, 3], [3, 2, 2, 1, 1]])
    >>> mask = torch.zeros(1, 10, 10, dtype=torch.bool)
    >>> mask[0, :3, :4] = True
    >>> round(normalized_region_accuracy(region, mask).item(), 7)
    0.6591151
    """
    return nra_from_areas(region_area(region, mask), area_bounds(mask), chance)


def iou_curves(region: Tensor, mask: Tensor) -> IoUCurves:
    """The three curves of the paper's Fig. 4, at every hundredth of the image (ranks r with r % step == 0).

    Returns:
        Three (P, R) doubles: the region's IoU with its first r + 1 pixels; the ideal, r / |M| up to |M| and |M| / r
        after; the published random line (r / N) (|M| / N).
    """
    _check(region, mask)
    num_pixels = mask[0].numel()
    step = max(num_pixels // BINS, 1)
    ranks = torch.arange(0, num_pixels, step, device=region.device)
    true_positives, size = _true_positives(region, mask, ranks)
    predicted = _iou(true_positives, (ranks + 1).double(), size)
    return IoUCurves(predicted, _ideal(ranks, size.double()), ranks / num_pixels * size / num_pixels)


def hits(nra: Tensor, threshold: float = 0.5) -> Tensor:
    """1 where the published NRA exceeds the threshold, else 0; NaN where it is undefined. Same shape as ``nra``."""
    return torch.where(nra.isnan(), nra, (nra > threshold).double())


def pointing_game(region: Tensor, mask: Tensor) -> Tensor:
    """Whether the maximum lies in the mask (Zhang et al., IJCV 2018); for several maxima, the share inside the mask.

    Returns:
        (P,), double, NaN where undefined.
    """
    _check(region, mask)
    values, inside = region.flatten(1), mask.flatten(1)
    largest = values == values.amax(dim=1, keepdim=True)
    share = (largest & inside).sum(dim=1).double() / largest.sum(dim=1)
    return _only_defined(share, region, mask)


def iou_at_area(region: Tensor, mask: Tensor) -> Tensor:
    """IoU of the mask with the |M| highest pixels, ties resolved by expectation: (P,), double, NaN where undefined."""
    _check(region, mask)
    if not mask.numel():
        return region.new_zeros(len(region), dtype=torch.double)
    size = _size(mask)
    found = _true_positives(region, mask, size.long().clamp_min(1).unsqueeze(1) - 1)[0].squeeze(1)
    return _only_defined(found / (2 * size - found), region, mask)


def average_precision(region: Tensor, mask: Tensor) -> Tensor:
    """Area under the precision-recall curve of the pixels (AUPRC), as a step function; equal values are one step.

    Returns:
        (P,), double, NaN where undefined.
    """
    _check(region, mask)
    order = region.detach().flatten(1).argsort(dim=1, descending=True, stable=True)
    values = region.detach().flatten(1).gather(1, order)
    found = mask.flatten(1).gather(1, order).cumsum(dim=1).double()
    ranks = torch.arange(1, values.shape[1] + 1, device=values.device, dtype=torch.double)
    precision = found / ranks
    ends = torch.ones_like(values, dtype=torch.bool)
    ends[:, :-1] = values[:, 1:] != values[:, :-1]
    # The recall gained by a run of equal values is weighted by the precision at the end of the run.
    gained = torch.where(ends, found, -1.0)
    before = torch.cat([torch.zeros_like(found[:, :1]), gained[:, :-1].cummax(dim=1).values.clamp_min(0)], dim=1)
    size = _size(mask)
    area = (torch.where(ends, found - before, 0.0) * precision).sum(dim=1) / size.clamp_min(1)
    return _only_defined(area, region, mask)


def category_means(total: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Means per category, and their unweighted mean over the categories that have pairs (the paper's "Avg.").

    Args:
        total: sums of values (..., categories), double.
        count: numbers of values (..., categories).

    Returns:
        Means (..., categories), NaN for categories without values, and their mean (...,), NaN if there are no values.

    >>> category_means(torch.tensor([3.0, 0.0, 1.0]), torch.tensor([4, 0, 1]))
    (tensor([0.7500,    nan, 1.0000]), tensor(0.8750))
    """
    means = total / count  # 0 / 0 is NaN
    present = count > 0
    # Added one by one: the summation order of a reduction may depend on the number of rows.
    added = sum(
        torch.where(present, means, 0.0).unbind(-1), start=torch.zeros((), dtype=total.dtype, device=total.device)
    )
    return means, added / present.sum(dim=-1)
