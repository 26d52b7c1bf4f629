"""Chance baselines: maps without concept information, evaluated under the same protocol.

Random numbers depend only on the pair (``ConceptPairs.keys``), so results do not depend on the distribution of the data over
batches, workers or processes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cefam.attribution.types import Activated
from cefam.errors import CefamError
from cefam.images.pictures import to_grey
from cefam.images.views import resize_regions
from cefam.methods.base import MethodContext, RegionMethod, chosen_stages
from cefam.pairs import Candidates, ConceptPairs

_ODD = -7046029254386353131  # 2^64 / golden ratio, as a signed 64-bit integer: spreads consecutive counters


def hashed_uniform(keys: Tensor, count: int, seed: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) that depend only on key, position and seed: (P,) -> (P, count), double.

    A counter-based generator (the splitmix64 finalizer), the same on every device.
    """
    x = keys.unsqueeze(1) + (torch.arange(1, count + 1, device=keys.device) + seed * 1_000_003) * _ODD
    for shift, multiplier in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ _shift_right(x, shift)) * multiplier
    x = x ^ _shift_right(x, 31)
    return _shift_right(x, 11).double() / 2**53


def checked_seed(seed: int) -> int:
    """Return the seed if it is valid."""
    if not -(2**31) <= seed < 2**31:
        raise CefamError(f"The seed must fit into 32 bits, got {seed}.")
    return seed


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts arithmetically; clear the copied sign bits


class RandomMapRegions(RegionMethod):
    """Independent uniform noise at every pixel; ``num_candidates`` candidates."""

    def __init__(self, context: MethodContext | None = None, seed: int = 0) -> None:
        super().__init__(context)
        self.seed = checked_seed(seed)

    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """See :class:`cefam.methods.RegionMethod`."""
        height, width = size
        values = hashed_uniform(pairs.keys().to(activated.images.device), num_candidates * height * width, self.seed)
        return Candidates.ranked(values.float().view(len(pairs), num_candidates, height, width))


class RandomChannelRegions(RegionMethod):
    """One random channel per stage, stages in random order.

    It has as many candidates as CE-FAM, so oracle selection among candidates is comparable.
    """

    def __init__(
        self, context: MethodContext | None = None, seed: int = 0, stages: Sequence[str] | None = None
    ) -> None:
        super().__init__(context)
        self.seed = checked_seed(seed)
        if stages is not None and context is None:
            raise CefamError("Stages are known by name with a context alone.")
        names = [] if context is None else context.classifier.stage_names
        self.stages = None if stages is None else chosen_stages(stages, names)

    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """See :class:`cefam.methods.RegionMethod`."""
        among = range(len(activated.output.activations)) if self.stages is None else self.stages
        maps = [activated.output.activations[stage] for stage in among]
        keys = pairs.keys().to(activated.images.device)
        draws = hashed_uniform(keys, 2 * len(maps), self.seed + 1)
        order = draws[:, : len(maps)].argsort(dim=1)[:, :num_candidates]
        resized = []
        for stage, activation in enumerate(maps):
            channel = (draws[:, len(maps) + stage] * activation.shape[1]).long()
            resized.append(resize_regions(activation[pairs.image, channel].float(), size))
        rows = torch.arange(len(pairs), device=activated.images.device).unsqueeze(1)
        return Candidates.ranked(
            torch.stack(resized, dim=1)[rows, order], torch.tensor(list(among)).to(rows.device)[order]
        )


class CenterRegions(RegionMethod):
    """Values decrease with the distance from the center, in units of the image's sides."""

    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """See :class:`cefam.methods.RegionMethod`."""
        height, width = size
        # Integers, so that pixels at the same distance have exactly equal values on every device.
        rows, columns = (2 * torch.arange(n, device=activated.images.device) + 1 - n for n in size)
        squared = (rows.unsqueeze(1) * width) ** 2 + (columns * height) ** 2
        nearness = 1 - squared.double().sqrt() / (2 * height * width)
        return Candidates.ranked(nearness.float().expand(len(pairs), 1, -1, -1))


class LuminanceRegions(RegionMethod):
    """The image's luminance (Rec. 601); the second candidate is its negative."""

    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """See :class:`cefam.methods.RegionMethod`."""
        bright = to_grey(activated.images).squeeze(1)
        both = torch.stack([resize_regions(m, size) for m in (bright, 1 - bright)], dim=1)
        return Candidates.ranked(both[pairs.image][:, :num_candidates])
