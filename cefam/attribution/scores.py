"""From pooled activations to a concept's score: pooling, similarity, probability (eq. 4, 6).

Pure functions of tensors. Letters: B images, C channels, H W map, T concepts, D embedding, P (image, concept) pairs.
"""

import torch.nn.functional as F
from torch import Tensor

from cefam.errors import CefamError


def pool(activation: Tensor) -> Tensor:
    """Global average pooling z (eq. 4): (B, C, H, W) -> (B, C)."""
    return activation.mean(dim=(-2, -1))


def similarity(embedding: Tensor, text: Tensor, logit_scale: float, logit_bias: float) -> Tensor:
    """Similarity S of embeddings (..., D) with concepts (T, D), in the VLM's logit scale: (..., T).

    ``S = logit_scale * cos(embedding, text) + logit_bias`` (eq. 6 as implemented in the published program).
    """
    # Add the bias inside the matrix product: an extra pass over (..., T) is slow.
    bias = text.new_full(text.shape[:1], logit_bias) if logit_bias else None
    return F.linear(logit_scale * F.normalize(embedding, dim=-1), F.normalize(text, dim=-1), bias)


def log_probability(scores: Tensor, probability: str, concept: Tensor | None = None) -> Tensor:
    """Logarithm of the concept prediction score: softmax over concepts (CLIP) or sigmoid (SigLIP).

    Double precision keeps ratios of two tiny probabilities from becoming 0 / 0.

    Args:
        scores: similarities with all concepts (P, ..., T).
        probability: "softmax" or "sigmoid".
        concept: concept index of each row (P,); ``None``: all concepts.

    Returns:
        (P, ..., T), or (P, ...) for one concept in each row.
    """
    wanted = scores
    if concept is not None:
        place = concept.view(-1, *(1,) * (scores.dim() - 1)).expand(*scores.shape[:-1], 1)
        wanted = scores.gather(-1, place)
    if probability == "softmax":
        # Only the sum over concepts is in single precision; its terms are at most 1.
        largest = scores.amax(dim=-1, keepdim=True)
        total = (scores - largest).exp_().sum(dim=-1, keepdim=True)
        logs = wanted.double() - largest - total.double().log()
    elif probability == "sigmoid":
        logs = F.logsigmoid(wanted.double())
    else:
        raise CefamError(f"probability must be 'softmax' or 'sigmoid', got {probability!r}.")
    return logs if concept is None else logs.squeeze(-1)


def similarity_gradient(embedding: Tensor, text: Tensor, logit_scale: float) -> Tensor:
    """Gradient of ``logit_scale * cos(embedding, text)`` with respect to the embedding, row by row: (P, D), (P, D) -> (P, D)."""
    norm = embedding.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    direction, text = embedding / norm, F.normalize(text, dim=-1)
    cosine = (direction * text).sum(dim=-1, keepdim=True)
    gradient: Tensor = logit_scale * (text - cosine * direction) / norm
    return gradient
