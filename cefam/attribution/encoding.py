"""Networks and their Encoding: what classifier and translator compute for a batch of images, once for all pairs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cefam.attribution.scores import pool, similarity
from cefam.concepts.sets import ConceptSet
from cefam.errors import CefamError
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.types import ClassifierOutput
from cefam.towers.wrapping import check_default_precision
from cefam.translator import Translator

ROUNDING = 1e-3  # by which floats in [0, 1] may exceed it


def single_precision(device: torch.device) -> torch.autocast:
    """A context in which autocast is off: the first pass of the towers may run in half precision, nothing after it.

    (Running the classifier on in bf16 moved associations by whole tenths: they are differences of small numbers.)
    """
    return torch.autocast(device.type, enabled=False)


@dataclass(frozen=True)
class Encoding:
    """What the networks compute for a batch.

    ``images`` (B, 3, H, W); ``output`` of the classifier; ``pooled``: z, one (B, C_l) per stage; ``embedding``: h (B, D);
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
        """Where its tensors are."""
        return self.embedding.device


def check_images(images: Tensor, classifier: FrozenClassifier) -> None:
    """Refuse images that the classifier would take for others, or not take.

    Raises:
        CefamError: for another shape, floats that are not finite, or, where the classifier normalizes, floats outside [0, 1].
    """
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
    """A frozen classifier, the translator trained for it, and concepts with embeddings: all that the method runs.

    Raises:
        CefamError: where translator and classifier, or translator and embeddings, do not fit.
    """

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
        """Where the translator is."""
        return next((value.device for value in self.translator.parameters()), torch.device("cpu"))

    def text(self, device: torch.device) -> Tensor:
        """The concepts' embeddings (T, D) on a device."""
        if self._text.device != device:
            self._text = self._text.to(device)
        return self._text

    def similarity(self, embedding: Tensor) -> Tensor:
        """S of embeddings (..., D) with all concepts: (..., T)."""
        return similarity(embedding, self.text(embedding.device), self.concepts.logit_scale, self.concepts.logit_bias)

    @torch.inference_mode(False)  # gradients are taken of what it gives, whatever the caller's mode
    @torch.no_grad()
    def encode(self, images: Tensor, output: ClassifierOutput | None = None) -> Encoding:
        """Run the classifier (unless its output is given) and the translator.

        Args:
            images: views (B, 3, H, W), uint8 or floats in [0, 1], which the classifier normalizes (one without ``preprocessing``
                takes them as they are).
            output: the classifier's output for them.

        Raises:
            CefamError: without ``output``, for images of another shape or range; under another default precision.
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
        """Numbers that the classifier computes after a stage for one of these images (the probe's, scaled by area)."""
        height, width = encoding.images.shape[-2:]
        probe = self.classifier.input_size[0] * self.classifier.input_size[1]
        return int(self.classifier.stages[stage].elements * max(height * width / probe, 1e-3)) + 1
