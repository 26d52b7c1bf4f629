"""The direct effect: how far what a concept takes from the last stage is what the class lives on. Ours, see docs/contributions.md."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.encoding import Encoding, single_precision
from cefam.pairs import ConceptPairs
from cefam.towers.classifier import FrozenClassifier


@torch.inference_mode(False)  # gradients are needed, whatever the caller's mode
@torch.no_grad()
def class_gradient(classifier: FrozenClassifier, encoding: Encoding, target: Tensor) -> Tensor:
    """Gradient of each image's log-odds of a class with respect to the last stage's map (B, C, H, W); NaN where there is no gradient.

    Args:
        classifier: the frozen classifier.
        encoding: of the images.
        target: the classes (B,).
    """
    every = torch.arange(len(target), device=encoding.device)
    with single_precision(encoding.device):
        again = classifier.rerun(encoding.output, encoding.images, every, first=-1)
        if not again.logits.requires_grad:
            return torch.full_like(encoding.output.activations[-1], torch.nan)
        with torch.enable_grad():
            p = classifier.probabilities(again.logits).gather(1, target.unsqueeze(1)).clamp(1e-12, 1 - 1e-12)
            (raw,) = torch.autograd.grad((p.log() - (-p).log1p()).sum(), again.sources)
        last = len(classifier.stages) - 1
        return classifier.as_map(last, raw.float(), encoding.output.activations[-1])


def direct_effect(
    classifier: FrozenClassifier, encoding: Encoding, pairs: ConceptPairs, importance: Tensor, target: Tensor
) -> Tensor:
    """Cosine of a concept's importances at the last stage with the class's gradient, averaged over the map: (P,), double, in [-1, 1].

    Args:
        classifier: the frozen classifier.
        encoding: of the images.
        pairs: P pairs.
        importance: beta * z of the last stage (P, C).
        target: the classes (B,).
    """
    gradient = class_gradient(classifier, encoding, target).mean(dim=(-2, -1))
    return F.cosine_similarity(importance.double(), gradient[pairs.image].double(), dim=1)
