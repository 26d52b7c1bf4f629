"""From a concept's score to its region: pooling, similarity, channel weights and their fusion (eq. 4, 6, 11, 12).

Pure functions of tensors. Letters: B images, C channels, H W map, T concepts, D embedding, P (image, concept) pairs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pool(activation: Tensor) -> Tensor:
    """Global average pooling z (eq. 4): (B, C, H, W) -> (B, C)."""
    return activation.mean(dim=(-2, -1))


def similarity(embedding: Tensor, text: Tensor, logit_scale: float, logit_bias: float) -> Tensor:
    """Similarity S of embeddings (..., D) with concepts (T, D), as the VLM scales it: (..., T).

    ``S = logit_scale * cos(embedding, text) + logit_bias`` (eq. 6 as the published program reads it).
    """
    # Added by the product, where there is one: (..., T) is large, and each time it is gone through costs.
    bias = text.new_full(text.shape[:1], logit_bias) if logit_bias else None
    return F.linear(logit_scale * F.normalize(embedding, dim=-1), F.normalize(text, dim=-1), bias)


def log_probability(scores: Tensor, probability: str, concept: Tensor | None = None) -> Tensor:
    """Logarithm of the concept prediction score: softmax over concepts (CLIP) or sigmoid (SigLIP).

    In double precision: a ratio of two tiny probabilities must not become 0 / 0.

    Args:
        scores: similarities with all concepts (P, ..., T).
        probability: "softmax" or "sigmoid".
        concept: the one that is wanted in each row (P,); ``None``: all of them.

    Returns:
        (P, ..., T), or (P, ...) for one concept in each row.
    """
    wanted = scores
    if concept is not None:
        place = concept.view(-1, *(1,) * (scores.dim() - 1)).expand(*scores.shape[:-1], 1)
        wanted = scores.gather(-1, place)
    if probability == "softmax":
        # Only the sum of terms up to 1 is left in single precision: it is all that is computed for every concept.
        largest = scores.amax(dim=-1, keepdim=True)
        total = (scores - largest).exp_().sum(dim=-1, keepdim=True)
        logs = wanted.double() - largest - total.double().log()
    elif probability == "sigmoid":
        logs = F.logsigmoid(wanted.double())
    else:
        raise ValueError(f"probability must be 'softmax' or 'sigmoid', got {probability!r}.")
    return logs if concept is None else logs.squeeze(-1)


def similarity_gradient(embedding: Tensor, text: Tensor, logit_scale: float) -> Tensor:
    """Gradient of ``logit_scale * cos(embedding, text)`` with respect to the embedding, row by row: (P, D), (P, D) -> (P, D)."""
    norm = embedding.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    direction, text = embedding / norm, F.normalize(text, dim=-1)
    cosine = (direction * text).sum(dim=-1, keepdim=True)
    gradient: Tensor = logit_scale * (text - cosine * direction) / norm
    return gradient


def branch_weights(pooled_gradient: Tensor, height: int, width: int) -> Tensor:
    """Channel weights beta through the translator alone: (dS/dz) / (H W), since z is a mean: (P, C) -> (P, C)."""
    return pooled_gradient / (height * width)


def total_weights(
    activations: Sequence[Tensor], sources: Sequence[Tensor], pooled_gradients: Sequence[Tensor]
) -> list[Tensor]:
    """Gradient of S through the translator AND through the later stages of the classifier (eq. 12, published program).

    Args:
        activations: maps of all stages for B images, each (B, C_l, H_l, W_l), still connected by autograd.
        sources: the tensors to derive by, ancestors of the later activations, one per stage wanted.
        pooled_gradients: dS/dz through the translator for S concepts of each image, one (S, B, C_l) per stage of
            ``activations``.

    Returns:
        One gradient per entry of ``sources``, in its shape after S.
    """
    # One forward pass serves all concepts of an image, and one backward all pairs: in eval mode no image touches another.
    with torch.enable_grad():
        pooled = [pool(activation.float()) for activation in activations]  # the maps may be in half precision
    # torch.vmap knows how convolutions go back in batches; `is_grads_batched=True` runs one concept after another.
    return list(torch.vmap(lambda *g: torch.autograd.grad(pooled, list(sources), g, True))(*pooled_gradients))


def fuse(activation: Tensor, weights: Tensor, image: Tensor) -> Tensor:
    """Region R = ReLU(sum_k beta_k A_k) (eq. 11) for ragged pairs, without copying a map per pair.

    Args:
        activation: maps of one stage (B, C, H, W).
        weights: beta of every pair (P, C).
        image: index of every pair's image (P,).

    Returns:
        (P, H, W)
    """
    images, channels, height, width = activation.shape
    slot = slots(image, images)
    most = int(slot.max()) + 1 if len(slot) else 0
    table = weights.new_zeros(images, most, channels)
    table[image, slot] = weights
    fused = table @ activation.flatten(2).to(weights.dtype)
    return fused[image, slot].view(-1, height, width).relu()


def slots(image: Tensor, num_images: int) -> Tensor:
    """Position of every pair among the pairs of its image: (P,) -> (P,).

    >>> slots(torch.tensor([2, 0, 2, 2, 0]), 3)
    tensor([0, 0, 1, 2, 1])
    """
    order = image.argsort(stable=True)
    counts = torch.bincount(image, minlength=num_images)
    starts = counts.cumsum(0) - counts
    position = torch.empty_like(image)
    position[order] = torch.arange(len(image), device=image.device) - starts[image[order]]
    return position
