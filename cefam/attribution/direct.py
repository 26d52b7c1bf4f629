"""The direct effect: cosine of a concept's importances with the gradient of the class's log-odds (docs/research/contributions.md)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.encoding import Encoding, single_precision
from cefam.attribution.scores import pool
from cefam.pairs import ConceptPairs
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.outputs import class_scores
from cefam.towers.stages import ClassifierOutput


@torch.inference_mode(False)  # gradients are needed even if the caller is in inference mode
@torch.no_grad()
def last_stage_gradient(
    classifier: FrozenClassifier, output: ClassifierOutput, images: Tensor, score: Callable[[Tensor], Tensor]
) -> Tensor:
    """Gradient of ``score`` (logits (B, Y) -> (B,)) by the last stage's map (B, C, H, W); NaN if not differentiable."""
    every = torch.arange(len(images), device=output.logits.device)
    with single_precision(output.logits.device):
        again = classifier.rerun(output, images, every, first=-1)
        if not again.logits.requires_grad:
            return torch.full_like(output.activations[-1], torch.nan)
        with torch.enable_grad():
            (raw,) = torch.autograd.grad(score(again.logits).sum(), again.sources)
        return classifier.as_map(len(classifier.stages) - 1, raw.float(), output.activations[-1].float())


def class_score_gradient(
    classifier: FrozenClassifier, output: ClassifierOutput, images: Tensor, target: Tensor | None
) -> Tensor:
    """:func:`last_stage_gradient` of the logit of each image's ``target`` (B,), or of its most probable class."""
    if target is None:
        target = classifier.probabilities(output.logits).argmax(dim=1)
    chosen = target.unsqueeze(1)
    return last_stage_gradient(classifier, output, images, lambda logits: class_scores(logits).gather(1, chosen))


def log_odds_of(classifier: FrozenClassifier, target: Tensor) -> Callable[[Tensor], Tensor]:
    """Score function for :func:`last_stage_gradient`: the log-odds of each image's ``target`` (B,)."""

    def log_odds(logits: Tensor) -> Tensor:
        p = classifier.probabilities(logits).gather(1, target.unsqueeze(1)).clamp(1e-12, 1 - 1e-12)
        return p.log() - (-p).log1p()

    return log_odds


def direct_effect(
    classifier: FrozenClassifier, encoding: Encoding, pairs: ConceptPairs, importance: Tensor, target: Tensor
) -> Tensor:
    """Cosine of importances at the last stage with the spatial mean gradient of the class's log-odds: (P,), double, in [-1, 1]."""
    score = log_odds_of(classifier, target)
    gradient = pool(last_stage_gradient(classifier, encoding.output, encoding.images, score))
    return F.cosine_similarity(importance.double(), gradient[pairs.image].double(), dim=1)
