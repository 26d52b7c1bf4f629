"""Networks (classifier, translator, concepts) and Encoding (their outputs for a batch of images, shared by all pairs)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cefam.attribution.scores import pool, similarity
from cefam.concepts.sets import ConceptSet
from cefam.errors import CefamError
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.stages import ClassifierOutput
from cefam.towers.wrapping import check_default_precision
from cefam.translator import Translator

ROUNDING = 1e-3  # tolerance for float images slightly outside [0, 1]


def single_precision(device: torch.device) -> torch.autocast:
    """Context manager that disables autocast: only the first pass of the towers may run in half precision.

    In bf16, associations change by tenths, because they are differences of small numbers.
    """
    return torch.autocast(device.type, enabled=False)


@dataclass(frozen=True)
class Encoding:
    """Outputs of the networks for a batch of images.

    ``images`` (B, 3, H, W); ``output``: of the classifier; ``pooled``: z, one (B, C_l) per stage; ``embedding``: h (B, D);
    ``similarity``: S (B, T); ``pull_back``: see :meth:`cefam.translator.Translator.linearize`.
    """

    images: Tensor
    output: ClassifierOutput
    pooled: list[Tensor]
    embedding: Tensor
    similarity: Tensor
    pull_back: Callable[[Tensor, Tensor], list[Tensor]]

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.embedding.device


def check_images(images: Tensor, classifier: FrozenClassifier) -> None:
    """Reject images with a shape or value range that the classifier does not accept."""
    channels = {classifier.input_channels, 3} if classifier.input_channels == 1 else {classifier.input_channels}
    if images.dim() != 4 or images.shape[1] not in channels:
        raise CefamError(
            f"Images must be (B, {classifier.input_channels}, H, W), got {tuple(images.shape)}: put the batch first, then the channels."
        )
    if not images.is_floating_point() or not images.numel():
        return
    low, high = (float(value) for value in images.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise CefamError("The images hold values that are not finite: look for NaN where they are made.")
    if classifier.preprocessing.mean and not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise CefamError(
            f"The images have values from {low:.3g} to {high:.3g}; the classifier normalizes images itself, and takes uint8 or floats in "
            f"[0, 1]. Divide pixels by 255, undo a normalization, or clamp what interpolation overshot."
        )


class Networks:
    """A frozen classifier, the translator trained for it, and concepts with embeddings."""

    def __init__(self, classifier: FrozenClassifier, translator: Translator, concepts: ConceptSet) -> None:
        text = concepts.require_embeddings()
        if translator.channels != classifier.channels:
            raise CefamError(
                f"The translator was made for stages of {translator.channels} channels, the classifier has {classifier.channels}: "
                f"it belongs to another classifier or another choice of stages."
            )
        if text.shape[1] != translator.embedding_dim:
            raise CefamError(
                f"The translator gives {translator.embedding_dim} dimensions, the concepts' embeddings have {text.shape[1]}: they "
                f"come from another vision-language model."
            )
        self.classifier, self.translator, self.concepts = classifier, translator, concepts
        self._text = text

    @property
    def device(self) -> torch.device:
        """Device of the translator."""
        return next((value.device for value in self.translator.parameters()), torch.device("cpu"))

    def text(self, device: torch.device) -> Tensor:
        """The concepts' embeddings (T, D) on a device."""
        if self._text.device != device:
            self._text = self._text.to(device)
        return self._text

    def similarity(self, embedding: Tensor) -> Tensor:
        """Similarity S of embeddings (..., D) with all concepts: (..., T)."""
        return similarity(embedding, self.text(embedding.device), self.concepts.logit_scale, self.concepts.logit_bias)

    @torch.inference_mode(False)  # the result must support gradients even if the caller is in inference mode
    @torch.no_grad()
    def encode(self, images: Tensor, output: ClassifierOutput | None = None) -> Encoding:
        """Run the classifier (unless its output is given) and the translator.

        Args:
            images: views (B, 3, H, W), uint8 or floats in [0, 1]; the classifier normalizes them if it has ``preprocessing``.
            output: the classifier's output for ``images``, if already computed.
        """
        check_default_precision()
        if output is None:
            check_images(images, self.classifier)
            output = self.classifier(images)
        output = ClassifierOutput(output.logits.float(), [a.float() for a in output.activations], output.context)
        pooled = [pool(activation) for activation in output.activations]
        with single_precision(images.device):
            embedding, pull_back = self.translator.linearize(pooled)
            return Encoding(images, output, pooled, embedding, self.similarity(embedding), pull_back)

    def elements(self, encoding: Encoding, stage: int) -> int:
        """Number of values that the classifier computes after a stage per image (known at ``input_size``, scaled by area)."""
        height, width = encoding.images.shape[-2:]
        probe = self.classifier.input_size[0] * self.classifier.input_size[1]
        return int(self.classifier.stages[stage].elements * max(height * width / probe, 1e-3)) + 1
