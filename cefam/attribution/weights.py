"""From a concept's score to its region: channel weights and their fusion (eq. 11, 12).

Letters: B images, C channels, H W map, L stages, P (image, concept) pairs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cefam.attribution.batching import PairTable, chunks, max_pairs, scattered
from cefam.attribution.encoding import Encoding, Networks, single_precision
from cefam.attribution.scores import pool, similarity_gradient
from cefam.attribution.types import Regions
from cefam.pairs import ConceptPairs
from cefam.settings import MethodSettings


def regions_of(networks: Networks, encoding: Encoding, pairs: ConceptPairs, settings: MethodSettings) -> Regions:
    """Regions of P pairs at every stage, with channel weights and importances (eq. 11, 12)."""
    layout = PairTable(pairs.image, len(encoding.images))
    activations = encoding.output.activations
    with single_precision(encoding.device):
        text = networks.text(encoding.device)[pairs.concept]
        gradient = similarity_gradient(encoding.embedding[pairs.image], text, networks.concepts.logit_scale)
        pooled_gradients = encoding.pull_back(gradient, pairs.image)
        # Through the translator alone: (dS/dz) / (H W), since z is a mean.
        weights = [
            gradient / activation[0, 0].numel()
            for gradient, activation in zip(pooled_gradients, activations, strict=True)
        ]
        if settings.derivative == "total" and len(weights) > 1:
            weights[:-1] = _total_weights(networks, encoding, layout, pooled_gradients, settings.memory_limit)
        if settings.preset == "published":
            weights = [
                _before_norm(networks, encoding, pairs.image, stage, w, settings.memory_limit)
                for stage, w in enumerate(weights)
            ]
        return Regions(
            maps=[fuse(a, w, layout).relu() for a, w in zip(activations, weights, strict=True)],
            weights=weights,
            importance=[w * z[pairs.image] for w, z in zip(weights, encoding.pooled, strict=True)],
        )


def _total_weights(
    networks: Networks, encoding: Encoding, layout: PairTable, pooled_gradients: Sequence[Tensor], memory_limit: float
) -> list[Tensor]:
    """Gradient of S through the translator AND the later stages (eq. 12, published program), (P, C_l) at all stages but the last.

    Images are grouped to respect the memory limit.
    """
    classifier, image, slot = networks.classifier, layout.image, layout.slot
    weights = [torch.zeros_like(gradient) for gradient in pooled_gradients[:-1]]
    largest = max(activation[0].numel() for activation in encoding.output.activations)
    fit = max_pairs(memory_limit, 2 * 4 * networks.elements(encoding, 0), 4 * largest, slot.device)
    for members, most in layout.groups(fit):
        group = torch.tensor(members, device=slot.device)
        place = torch.full((layout.num_images,), -1, device=slot.device)
        place[group] = torch.arange(len(group), device=slot.device)
        where = place[image]
        again = classifier.rerun(encoding.output, encoding.images, group)
        # One forward pass serves all concepts, one backward pass all pairs: in eval mode images do not interact.
        with torch.enable_grad():
            pooled_again = [
                pool(activation.float()) for activation in again.activations
            ]  # the maps may be in half precision
        step = max(1, fit // len(group))
        for part in chunks(most, step):
            rows = ((where >= 0) & (slot >= part.start) & (slot < part.stop)).nonzero().squeeze(1)
            at = (slot[rows] - part.start, where[rows])
            shape = (part.stop - part.start, len(group))
            tables = [scattered(gradient[rows], at, shape) for gradient in pooled_gradients]
            gradients = classifier.gradients(pooled_again, again.sources[:-1], tables)
            for stage, gradient in enumerate(gradients):
                raw = gradient.float().flatten(0, 1)
                pooled = pool(classifier.as_map(stage, raw, encoding.output.activations[stage]))
                weights[stage][rows] = pooled.unflatten(0, shape)[at]  # type: ignore[no-untyped-call]
    return weights


def _before_norm(
    networks: Networks, encoding: Encoding, image: Tensor, stage: int, weights: Tensor, memory_limit: float
) -> Tensor:
    """Weights before the final LayerNorm, for stages whose map is taken after it (published rule for ViT)."""
    before = encoding.output.context[stage].before_norm
    if before is None:
        return weights
    parts = [weights[:0]]
    each = 4 * before[0].numel()
    for chunk in chunks(len(image), max_pairs(memory_limit, 4 * each, each, before.device)):
        maps = before[image[chunk]].float()
        gradient = weights[chunk, :, None, None].expand_as(maps)
        parts.append(pool(networks.classifier.through_norm(stage, gradient, maps)))
    return torch.cat(parts)


def fuse(activation: Tensor, weights: Tensor, layout: PairTable) -> Tensor:
    """The map sum_k beta_k A_k of every pair (eq. 11 without its ReLU), without copying activations per pair.

    Returns:
        Signed maps (P, H, W).
    """
    images, _, height, width = activation.shape
    at = (layout.image, layout.slot)
    fused = scattered(weights, at, (images, layout.width)) @ activation.flatten(2).to(weights.dtype)
    return fused[at].view(-1, height, width)
