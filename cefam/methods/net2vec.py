"""Net2Vec (Fong and Vedaldi, CVPR 2018): a weight vector over a stage's neurons for every concept, fitted to masks. Supervised."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cefam.attribution.types import Activated
from cefam.errors import CefamError
from cefam.images.views import resize_regions
from cefam.methods.base import MethodContext, RegionMethod, chosen_stages
from cefam.methods.masked import Masked, MaskedShards, thresholds
from cefam.pairs import Candidates, ConceptPairs

SHARE = 0.005  # P(a > T): activations are binarized at T
BATCH = 16


@dataclass(frozen=True)
class Net2Vec:
    """Per stage: ``threshold`` T_k (C_l,), ``weight`` (T, C_l), and training ``iou`` (T,), NaN for concepts without masks."""

    threshold: list[Tensor]
    weight: list[Tensor]
    iou: list[Tensor]


def loss(score: Tensor, mask: Tensor, alpha: Tensor) -> Tensor:
    """Loss of the published program: -sum over pixels of alpha L M + (1 - alpha) (1 - L) (1 - M), M = sigmoid(score).

    Args:
        score: scores resized to the masks (P, h, w).
        mask: L (P, h, w), boolean.
        alpha: weight of the concept's pixels (P,).
    """
    m, truth, weight = score.sigmoid(), mask.to(score.dtype), alpha.view(-1, 1, 1)
    return -(weight * truth * m + (1 - weight) * (1 - truth) * (1 - m)).sum()


def scores(weight: Tensor, threshold: Tensor, batch: Masked, stage: int) -> Tensor:
    """Scores sum_k w_k 1[a_k > T_k], resized to the masks: (P, h, w)."""
    binary = (batch.maps[stage] > threshold.view(-1, 1, 1)).float()
    found = torch.einsum("pc,pchw->phw", weight[batch.concept], binary[batch.image])
    return resize_regions(found, batch.mask.shape[-2:])


def fit(
    context: MethodContext,
    shards: str,
    epochs: int = 30,
    learning_rate: float = 1e-4,
    share: float = SHARE,
    seed: int = 0,
) -> Net2Vec:
    """Fit the weights of all concepts and stages jointly, by SGD with momentum 0.9."""
    photographs = MaskedShards(context.classifier, context.concepts, shards, BATCH, "net2vec")
    threshold = thresholds(photographs, share)
    pixels, shown = torch.zeros(2, len(context.concepts), dtype=torch.double)
    for batch in photographs:
        pixels.index_add_(0, batch.concept, batch.mask.flatten(1).double().mean(dim=1))
        shown.index_add_(0, batch.concept, torch.ones(len(batch.concept), dtype=torch.double))
    alpha = (1 - pixels / shown.clamp_min(1)).float()
    random = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False):
        weight = [
            nn.Parameter((2 * torch.rand(len(alpha), len(t), generator=random) - 1) / len(t) ** 0.5) for t in threshold
        ]
        optimizer = torch.optim.SGD(weight, learning_rate, momentum=0.9)
        for _ in range(epochs):
            for batch in photographs:
                with torch.enable_grad():
                    every = [
                        loss(scores(w, t, batch, stage), batch.mask, alpha[batch.concept])
                        for stage, (w, t) in enumerate(zip(weight, threshold, strict=True))
                    ]
                    optimizer.zero_grad()
                    (torch.stack(every).sum() / BATCH).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    fitted = [w.detach() for w in weight]
    return Net2Vec(threshold, fitted, _overlaps(photographs, threshold, fitted))


@torch.no_grad()
def _overlaps(photographs: MaskedShards, threshold: list[Tensor], weight: list[Tensor]) -> list[Tensor]:
    """IoU of {M > 0.5} with the masks, accumulated over the photographs that show the concept: (T,) per stage."""
    both, either = torch.zeros(2, len(threshold), len(photographs.concepts), dtype=torch.double)
    for batch in photographs:
        for stage, (w, t) in enumerate(zip(weight, threshold, strict=True)):
            found = scores(w, t, batch, stage) > 0
            both[stage].index_add_(0, batch.concept, (found & batch.mask).flatten(1).sum(dim=1).double())
            either[stage].index_add_(0, batch.concept, (found | batch.mask).flatten(1).sum(dim=1).double())
    return list(both / either)  # NaN (0 / 0) for concepts that no photograph shows


class Net2VecRegions(RegionMethod):
    """Maps M of Net2Vec, one candidate per stage, ordered by training IoU; a reference method supervised by masks.

    Args:
        context: provides the classifier.
        shards: training photographs with masks, disjoint from the evaluation photographs.
        epochs: number of training epochs.
        learning_rate: learning rate; the loss is a sum over pixels.
        stages: names of the candidate stages; ``None``: all.
        seed: seed of the initial weights.
    """

    def __init__(
        self,
        context: MethodContext,
        shards: str,
        epochs: int = 30,
        learning_rate: float = 1e-4,
        stages: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(context)
        names = context.classifier.stage_names
        among = chosen_stages(names if stages is None else stages, names)
        if epochs < 1 or not learning_rate > 0:
            raise CefamError(f"epochs and learning_rate must be positive, got {epochs} and {learning_rate}.")
        self.fitted = fit(context, shards, epochs, learning_rate, seed=seed)
        iou = torch.stack([self.fitted.iou[stage] for stage in among], dim=1)
        score, order = iou.nan_to_num(-1).sort(dim=1, descending=True, stable=True)
        self.score, self.stage = score, torch.tensor(among)[order]

    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """See :class:`cefam.methods.RegionMethod`."""
        device = activated.images.device
        pairs = pairs.to(device)
        score, stage = (part.to(device)[pairs.concept, :num_candidates] for part in (self.score, self.stage))
        maps = torch.zeros(*stage.shape, *size, device=device)
        for index, activation in enumerate(activated.output.activations):
            row, place = (stage == index).nonzero(as_tuple=True)
            weight, threshold = (part[index].to(device) for part in (self.fitted.weight, self.fitted.threshold))
            binary = (activation.float() > threshold.view(-1, 1, 1)).float()
            found = torch.einsum("pc,pchw->phw", weight[pairs.concept[row]], binary[pairs.image[row]])
            maps[row, place] = resize_regions(found, size).sigmoid()
        return Candidates(maps, score, stage, score >= 0)
