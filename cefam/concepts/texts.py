"""Text embeddings of a vision-language model."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.errors import CefamError


class TextEncoder(Protocol):
    """The part of :class:`cefam.VisionLanguageModel` that a concept set uses."""

    embedding_dim: int
    logit_scale: float
    logit_bias: float

    @property
    def probability(self) -> str:
        """How similarities become scores: softmax or sigmoid."""

    def encode_text(self, texts: list[str]) -> Tensor:
        """Embeddings (T, D)."""

    def freeze(self) -> Any:
        """Put the encoder in eval mode and return it."""

    def identity(self) -> dict[str, Any]:
        """Identity of the model in plain types."""


@torch.no_grad()
def encode_texts(vlm: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Unit text embeddings (T, D), on the CPU."""
    embeddings = vlm.encode_text(list(texts)).float().cpu()
    if embeddings.shape != (len(texts), vlm.embedding_dim):
        raise CefamError(
            f"The VLM's encode_text gave {tuple(embeddings.shape)} for {len(texts)} texts, its embedding_dim is {vlm.embedding_dim}: "
            f"it must give (T, D)."
        )
    if not bool(embeddings.isfinite().all()):
        raise CefamError("The VLM's text embeddings are not finite: its weights hold NaN or infinity.")
    return F.normalize(embeddings, dim=-1)
