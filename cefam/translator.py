"""The translator h: pooled activations -> the VLM's embedding space, and the losses that train it.

Paper: section 3.2 (eq. 4-10) and A.2; the layer widths and the input order follow the published program.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cefam.errors import CefamError

WIDE_STAGE = 1024  # if the deepest stage has more channels, the first hidden width is 2048, not 1024


def published_hidden_dims(channels: Sequence[int]) -> tuple[int, int]:
    """Hidden widths of the published program: (2048, 1024) if the deepest stage has more than 1024 channels.

    A single stage always gets (1024, 1024).

    >>> published_hidden_dims([256, 512, 1024, 2048])
    (2048, 1024)
    >>> published_hidden_dims([2048])
    (1024, 1024)
    """
    return (2048 if channels[-1] > WIDE_STAGE and len(channels) > 1 else 1024, 1024)


class Translator(nn.Module):
    """A three-layer MLP with tanh between its layers (paper A.2).

    Args:
        channels: channels C_l of every stage, shallow to deep.
        embedding_dim: D, the dimension of the VLM's embedding.
        hidden_dims: the two hidden widths; ``None`` uses :func:`published_hidden_dims`.

    Raises:
        CefamError: if a width is not positive or ``hidden_dims`` does not have two entries.

    >>> translator = Translator(channels=[16, 32], embedding_dim=8)
    >>> translator([torch.rand(2, 16), torch.rand(2, 32)]).shape
    torch.Size([2, 8])
    """

    def __init__(self, channels: Sequence[int], embedding_dim: int, hidden_dims: Sequence[int] | None = None) -> None:
        super().__init__()
        self.channels = list(channels)
        self.embedding_dim = embedding_dim
        if hidden_dims is None and channels:
            hidden_dims = published_hidden_dims(channels)
        self.hidden_dims = list(hidden_dims or [])
        if len(self.hidden_dims) != 2 or min([*self.channels, *self.hidden_dims, embedding_dim]) < 1:
            raise CefamError(
                f"A translator needs at least one stage, two hidden widths and positive sizes; got channels={list(channels)}, "
                f"hidden_dims={hidden_dims}, embedding_dim={embedding_dim}."
            )
        first, second = self.hidden_dims
        self.fc1 = nn.Linear(sum(self.channels), first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, embedding_dim)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Embedding (B, D) of pooled activations, a list of (B, C_l), shallow to deep."""
        return self._tail(self.first_layer(pooled))

    def _concatenate(self, pooled: Sequence[Tensor]) -> Tensor:
        widths = [z.shape[-1] for z in pooled]
        if widths != self.channels:
            raise CefamError(
                f"This translator was made for stages of {self.channels} channels and got {widths}: it belongs to another "
                f"classifier or another choice of stages. Load the classifier it was trained with."
            )
        return torch.cat(list(reversed(pooled)), dim=-1)  # deepest first: the published program's order

    def _tail(self, first: Tensor) -> Tensor:
        # VLM embeddings are signed; ReLU would stop the gradient where they are negative (A.2).
        embedding: Tensor = self.fc3(torch.tanh(self.fc2(torch.tanh(first))))
        return embedding

    def linearize(self, pooled: Sequence[Tensor]) -> tuple[Tensor, Callable[[Tensor, Tensor], list[Tensor]]]:
        """The embedding and its derivative, without autograd.

        Args:
            pooled: list of (B, C_l), shallow to deep.

        Returns:
            The embedding (B, D), and a function ``pull_back(gradient, image)``. ``gradient`` (P, D) is the gradient of
            scores with respect to the embedding, ``image`` (P,) the image index of each score. The function returns the
            gradient with respect to the pooled activations, a list of (P, C_l), shallow to deep.
        """
        first = torch.tanh(self.first_layer(pooled))
        second = torch.tanh(self.fc2(first))

        def pull_back(gradient: Tensor, image: Tensor) -> list[Tensor]:
            gradient = (gradient @ self.fc3.weight) * (1 - second[image] ** 2)
            gradient = (gradient @ self.fc2.weight) * (1 - first[image] ** 2)
            return self.split(gradient @ self.fc1.weight)

        return self.fc3(second), pull_back

    def split(self, concatenated: Tensor) -> list[Tensor]:
        """Cut (..., C) in the input's order (deepest stage first) into a list of (..., C_l), shallow to deep."""
        return list(concatenated.split(list(reversed(self.channels)), dim=-1))[::-1]  # type: ignore[no-untyped-call]

    def first_layer(self, pooled: Sequence[Tensor]) -> Tensor:
        """Output of the first layer before its tanh: a list of (B, C_l) -> (B, first width)."""
        first: Tensor = self.fc1(self._concatenate(pooled))
        return first

    def columns(self, stage: int) -> Tensor:
        """The first layer's weights for one stage's channels (C_l, first width), contiguous for fast row gathering."""
        return self.split(self.fc1.weight)[stage].t().contiguous()

    def masked(self, first: Tensor, columns: Tensor, channels: Tensor, change: Tensor) -> Tensor:
        """Embeddings after changing channels of one stage cumulatively.

        The first layer is not recomputed: each changed channel adds a multiple of one weight column to its output.

        Args:
            first: :meth:`first_layer` of the unmasked input (P, first width).
            columns: :meth:`columns` of the stage.
            channels: channels in the order of masking (P, K).
            change: value added to each channel (P, K).

        Returns:
            (P, K, D); entry n has the first n + 1 channels changed.
        """
        count = channels.shape[1]
        so_far = change.new_ones(count, count).tril()  # row n selects the first n + 1 channels
        moved = torch.baddbmm(first.unsqueeze(1), so_far * change.unsqueeze(1), F.embedding(channels, columns))
        return self._tail(moved)


class DistillationLosses(NamedTuple):
    """Losses of one batch, each a scalar: ``total`` = ``embedding`` + ``similarity``, the latter already weighted."""

    total: Tensor
    embedding: Tensor
    similarity: Tensor


def distillation_losses(
    student: Tensor,
    teacher: Tensor,
    text: Tensor | None,
    logit_scale: float = 1.0,
    logit_bias: float = 0.0,
    similarity_weight: float = 0.001,
) -> DistillationLosses:
    """Losses of the translator (eq. 8-10), as the published program computes them.

    ``total = mean((h - e)^2) + weight * mean((S(h) - S(e))^2)`` with ``S(v) = scale * cos(v, text) + bias``.

    Args:
        student: translated embeddings h (B, D).
        teacher: raw, unnormalized image embeddings e of the VLM (B, D).
        text: concept embeddings (T, D); ``None``, or a weight of 0, trains without L_sim (zero-shot).
        logit_scale: the VLM's multiplier of cosines (not its logarithm).
        logit_bias: the VLM's additive bias; it cancels in the difference, so it has no effect.
        similarity_weight: lambda of eq. 8.
    """
    embedding = F.mse_loss(student, teacher)
    similarity = embedding.new_zeros(())
    if text is not None and similarity_weight > 0:
        text = F.normalize(text, dim=-1)
        ours, theirs = (logit_scale * F.normalize(v, dim=-1) @ text.t() + logit_bias for v in (student, teacher))
        similarity = similarity_weight * F.mse_loss(ours, theirs)
    return DistillationLosses(embedding + similarity, embedding, similarity)
