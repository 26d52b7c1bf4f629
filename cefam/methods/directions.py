"""A concept's direction: the gradient of its similarity S by the pooled activations z, one for all images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cefam.attribution.encoding import single_precision
from cefam.attribution.scores import similarity_gradient
from cefam.methods.base import Bench
from cefam.methods.neurons import classifier_probe


def mean_activations(bench: Bench, method: str) -> list[Tensor]:
    """The mean z of the probe's photographs, one (C_l,) per stage.

    Args:
        bench: with the probe.
        method: who asks, for the error.

    Raises:
        CefamError: where there is no probe, or it is of another classifier.
    """
    return [value.float() for value in classifier_probe(bench, method).mean]


@torch.no_grad()
def concept_directions(bench: Bench, at: Sequence[Tensor]) -> list[Tensor]:
    """Directions of all concepts, one (T, C_l) per stage.

    Args:
        bench: with the trained translator.
        at: the activations z at which the gradient is taken, one (C_l,) per stage.
    """
    trained = bench.trained
    device = next(trained.translator.parameters()).device
    with single_precision(device):
        embedding, pull_back = trained.translator.linearize([value.to(device).unsqueeze(0) for value in at])
        text = trained.explainer().networks.text(device)
        gradient = similarity_gradient(embedding.expand(len(text), -1), text, trained.concepts.logit_scale)
        return pull_back(gradient, torch.zeros(len(text), dtype=torch.long, device=device))
