"""A reference that looks at masks: ``beyond`` along directions that were fitted to them.

    cefam evaluate --config evaluate/broden --model.artefact ARTEFACT --data.shards SHARDS --model.methods
    "{fitted to masks: {class_path: examples.beyond.reference.FittedDirections, init_args: {shards: OTHER_SHARDS}}}"

Where such a direction does not find a concept in the maps of a classifier, one that comes from text will hardly do.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.fused import usual_scales
from cefam.methods import Activated, BeyondRegions, MethodContext
from cefam.methods.masked import MaskedShards
from cefam.towers.stages import ClassifierOutput

RIDGE = 0.01  # of each channel's variance
CELLS = 24  # of a window, on which maps and masks are compared, at most


class FittedDirections(BeyondRegions):
    """``beyond`` along directions fitted to masks: least squares of a mask's share of a cell on the maps there, windows included.

    Args:
        context: with the trained translator.
        shards: photographs with masks of the concepts, other ones than those that regions are measured on.
        compete: as of ``beyond``.
    """

    def __init__(self, context: MethodContext, shards: str, compete: bool = True) -> None:
        super().__init__(context, regression=False, compete=compete)
        channels, concepts = sum(context.classifier.channels), len(context.concepts)
        gram = torch.zeros(channels, channels, dtype=torch.double)
        cross = torch.zeros(channels, concepts, dtype=torch.double)
        sums, shares, count = gram[0].clone(), cross[0].clone(), 0
        for x, y in self._cells(MaskedShards(context.classifier, context.concepts, shards)):
            gram, cross = gram + x.T @ x, cross + x.T @ y
            sums, shares, count = sums + x.sum(dim=0), shares + y.sum(dim=0), count + len(x)
        mean = sums / count
        gram, cross = gram / count - torch.outer(mean, mean), cross / count - torch.outer(mean, shares / count)
        gram += torch.diag(RIDGE * gram.diagonal().clamp_min(1e-12))
        self.maps.directions = list(
            torch.split(torch.linalg.solve(gram, cross).T.float(), context.classifier.channels, dim=1)
        )

    def _cells(self, photographs: MaskedShards) -> Iterator[tuple[Tensor, Tensor]]:
        """Maps of all stages (n, C) and shares of all concepts' masks (n, T) at the cells of a window of a batch, doubles."""
        for batch in photographs:
            activated = Activated(batch.images, ClassifierOutput(torch.zeros(0), batch.maps, []))  # it has run already
            height, width = batch.mask.shape[-2:]
            masks = torch.zeros(len(batch.images), len(photographs.concepts), height, width)
            masks[batch.image, batch.concept] = batch.mask.float()
            side = min(CELLS, max(min(maps.shape[-2:]) for maps in batch.maps))
            for scale in usual_scales(activated):
                for (rows, columns), maps in self.maps.seen(activated, scale):
                    top, bottom = (round(height * part) for part in rows)
                    left, right = (round(width * part) for part in columns)
                    seen = torch.cat([_at(each.float(), side) for each in maps], dim=1)
                    yield _rows(seen), _rows(_at(masks[..., top:bottom, left:right], side))


def _at(maps: Tensor, side: int) -> Tensor:
    finer = maps.shape[-1] > side
    return F.interpolate(maps, (side, side), mode="area" if finer else "bilinear")


def _rows(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).flatten(0, 2).double()
