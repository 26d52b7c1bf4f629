"""Saliency methods for the class score or the concept score: Integrated Gradients, Grad-CAM++, Score-CAM, RISE.

The first two come from captum and grad-cam (extra "methods": ``pip install 'cefam[methods]'``). The other two score masked
images; they are implemented here so that all concepts of an image share its masked images.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.scores import log_probability
from cefam.attribution.types import Activated
from cefam.errors import CefamError
from cefam.methods.base import MethodContext
from cefam.methods.saliency import Of, ScoreMapRegions, floats, needed


class IntegratedGradientsRegions(ScoreMapRegions):
    """Integrated Gradients (Sundararajan et al., ICML 2017) from a black image, absolute values summed over the channels.

    Args:
        context: provides the classifier, and the trained translator for concept scores.
        of: "class" or "concept".
        steps: number of integration steps.
    """

    def __init__(self, context: MethodContext, of: Of = "concept", steps: int = 32) -> None:
        super().__init__(context, of)
        self.attribution = needed("captum.attr", "Integrated Gradients").IntegratedGradients
        self.steps = steps

    def maps(self, activated: Activated, image: Tensor, target: Tensor) -> Tensor:
        """See :meth:`ScoreMapRegions.maps`."""
        found: Tensor = self.attribution(self.view).attribute(
            floats(activated)[image], target=target, n_steps=self.steps, internal_batch_size=max(64, len(image))
        )
        return found.abs().sum(dim=1)


class GradCAMPlusPlusRegions(ScoreMapRegions):
    """Grad-CAM++ (Chattopadhay et al., WACV 2018) at the last stage.

    Args:
        context: provides the classifier, and the trained translator for concept scores.
        of: "class" or "concept".
    """

    def __init__(self, context: MethodContext, of: Of = "concept") -> None:
        super().__init__(context, of)
        self.library = needed("pytorch_grad_cam", "Grad-CAM++")

    def maps(self, activated: Activated, image: Tensor, target: Tensor) -> Tensor:
        """See :meth:`ScoreMapRegions.maps`."""
        classifier, images = self.explainer.classifier, floats(activated)[image]
        size = classifier.preprocessing.size or images.shape[-2:]
        stage = classifier.stages[-1]

        def as_map(raw: Any) -> Tensor:
            return stage.to_map(raw, stage.grid(raw, size))[0]

        targets = [self.library.utils.model_targets.ClassifierOutputTarget(int(index)) for index in target]
        layers = [self.view.last_stage]
        with self.library.GradCAMPlusPlus(self.view, target_layers=layers, reshape_transform=as_map) as cam:
            found = cam(
                input_tensor=images.requires_grad_(), targets=targets
            )  # weights are frozen: inputs need gradients
        return torch.from_numpy(found).to(images.device)


class MaskedScoreRegions(ScoreMapRegions):
    """Sum of masks weighted by the scores of the masked images. Subclasses define :meth:`masks` and :meth:`weights`."""

    mask_key: tuple[
        float, ...
    ] = ()  # identifies the masks: methods with equal keys share the scores of the masked images

    def masks(self, images: Tensor) -> Tensor:
        """Masks of every image, in [0, 1]: (B, N, H, W)."""
        raise NotImplementedError

    def weights(self, outputs: Tensor) -> Tensor:
        """Weights of the masks of an image (N, scores), from the scores of the masked images."""
        raise NotImplementedError

    def weighted(self, images: Tensor) -> Tensor:
        """Maps that are summed with the weights (B, N, h, w); by default the masks."""
        return self.masks(images)

    @torch.no_grad()
    def maps(self, activated: Activated, image: Tensor, target: Tensor) -> Tensor:
        """See :meth:`ScoreMapRegions.maps`; each image is masked once for all its pairs.

        Images are processed one at a time: Score-CAM's masks of one image take 0.25 GB (1,280 channels at 224).
        """
        found, images = list[Tensor](), floats(activated)
        order = image.argsort(stable=True)
        for index in torch.unique(image).tolist():
            one = images[index : index + 1]
            classes, concepts = activated.once((type(self), self.mask_key, index), partial(self._outputs, one))
            weights = self.weights(classes if self.of == "class" else concepts)[:, target[image == index]]
            found.append(torch.einsum("np,nhw->phw", weights.float(), self.weighted(one)[0]))
        return torch.cat(found)[order.argsort()].relu()

    def _outputs(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) and similarities (N, T) of the masked versions of an image (1, 3, H, W)."""
        parts = torch.split(self.masks(image)[0], 64)
        every = [self.explainer.encode(image * part.unsqueeze(1)) for part in parts]
        return torch.cat([each.output.logits for each in every]), torch.cat([each.similarity for each in every])


class ScoreCAMRegions(MaskedScoreRegions):
    """Score-CAM (Wang et al., CVPRW 2020): the masks are the last stage's channels; one forward pass per channel and image.

    Args:
        context: provides the classifier, and the trained translator for concept scores.
        of: "class" or "concept".
    """

    def masks(self, images: Tensor) -> Tensor:
        """Channels resized to the image, each scaled to [0, 1]; constant channels become 0."""
        activation = self.explainer.classifier(images).activations[-1].float()
        large = F.interpolate(activation, images.shape[-2:], mode="bilinear", align_corners=False)
        low, high = large.amin(dim=(2, 3), keepdim=True), large.amax(dim=(2, 3), keepdim=True)
        return (large - low) / (high - low).clamp_min(1e-8)

    def weights(self, outputs: Tensor) -> Tensor:
        """A softmax over the channels."""
        return torch.softmax(outputs, dim=0)

    def weighted(self, images: Tensor) -> Tensor:
        """The unscaled channels."""
        activation: Tensor = self.explainer.classifier(images).activations[-1]
        return activation.float()


class RISERegions(MaskedScoreRegions):
    """RISE (Petsiuk et al., BMVC 2018): random masks, weighted by the probability of the masked image.

    Args:
        context: provides the classifier, and the trained translator for concept scores.
        of: "class" or "concept".
        count: number of random masks.
        cells: number of mask cells per side.
        share: share of the cells that are not masked.
        seed: seed of the masks.
    """

    def __init__(
        self,
        context: MethodContext,
        of: Of = "concept",
        count: int = 500,
        cells: int = 7,
        share: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(context, of)
        if count < 1 or cells < 1 or not 0 < share < 1:
            raise CefamError(
                f"RISE needs count and cells above 0 and a share in (0, 1), got {count}, {cells}, {share}."
            )
        self.mask_key = (count, cells, share, seed)
        random = torch.Generator().manual_seed(seed)
        self.grid = (torch.rand(count, 1, cells + 1, cells + 1, generator=random) < share).float()
        self.shift = torch.rand(count, 2, generator=random)
        self.cells = cells

    def masks(self, images: Tensor) -> Tensor:
        """Upsampled random grids, each shifted by less than a cell; the same for all images."""
        height, width = images.shape[-2:]
        tall, wide = -(-height // self.cells), -(-width // self.cells)
        large = F.interpolate(self.grid, (height + tall, width + wide), mode="bilinear", align_corners=False)
        down, right = (self.shift[:, 0] * tall).long(), (self.shift[:, 1] * wide).long()
        rows = down.view(-1, 1, 1) + torch.arange(height).view(1, -1, 1)
        columns = right.view(-1, 1, 1) + torch.arange(width)
        cut = large[torch.arange(len(large)).view(-1, 1, 1), 0, rows, columns]
        return cut.to(images.device).expand(len(images), -1, -1, -1)

    def weights(self, outputs: Tensor) -> Tensor:
        """Class or concept probabilities of the masked images."""
        if self.of == "class":
            return self.explainer.classifier.probabilities(outputs)
        return log_probability(outputs, self.explainer.concepts.probability).exp()

    def maps(self, activated: Activated, image: Tensor, target: Tensor) -> Tensor:
        """Weighted sum of the masks, normalized at every pixel by the sum of the masks."""
        return super().maps(activated, image, target) / self.masks(activated.images[:1]).sum(dim=1).clamp_min(1e-6)
