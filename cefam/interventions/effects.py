"""What a classifier makes of edits: the interventional effect of every concept of a scene (CaCE, arXiv 1907.07165)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cefam.brodenette.drawing import CATEGORIES, draw
from cefam.brodenette.rules import CLASSES
from cefam.brodenette.scenes import Scene
from cefam.interventions.edits import Intervention, interventions
from cefam.towers.classifier import FrozenClassifier

REDRAWN = 8  # times that a scene's noise is drawn anew
BATCH = 128
EDGE = 30.0  # log-odds beyond this are cut: the probability is 0 or 1 to 13 digits


@dataclass(frozen=True)
class Effects:
    """One scene and what its concepts do.

    Args:
        scene: as described.
        image: (3, H, W), uint8.
        target: its class.
        predicted: what the classifier says.
        interventions: on P concepts.
        effect: log-odds of the class before minus the mean over the alternatives (P,).
        probability: the same of its probability (P,).
        noise: two standard deviations of the log-odds over the scene's noise: effects below it are none.
        log_odds: before.
        masks: where each concept shows (P, H, W), boolean.
    """

    scene: Scene
    image: Tensor
    target: int
    predicted: int
    interventions: list[Intervention]
    effect: Tensor
    probability: Tensor
    noise: float
    log_odds: float
    masks: Tensor

    @property
    def numbers(self) -> list[int]:
        """Numbers of the concepts."""
        return [each.label.number for each in self.interventions]

    @property
    def needed(self) -> Tensor:
        """Whether the class's rule names each concept (P,), boolean."""
        return torch.tensor([each.needed for each in self.interventions])

    @property
    def right(self) -> bool:
        """Whether the classifier is right."""
        return self.predicted == self.target


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """Drawn scenes (B, 3, H, W), uint8."""
    return torch.from_numpy(np.stack([draw(scene).image for scene in scenes])).permute(0, 3, 1, 2)


@torch.no_grad()
def log_odds(classifier: FrozenClassifier, images: Tensor, target: int) -> Tensor:
    """Logarithm of p / (1 - p) of a class (B,), double."""
    found = []
    for part in torch.split(images, BATCH):
        p = classifier.probabilities(classifier(part).logits)[:, target]
        found.append((p.log() - (-p).log1p()).clamp(-EDGE, EDGE))
    return torch.cat(found)


def measure(classifier: FrozenClassifier, scene: Scene) -> Effects:
    """Draw a scene's edits and run the classifier on them."""
    drawing = draw(scene)
    image = torch.from_numpy(drawing.image.copy()).permute(2, 0, 1)
    shown = {int(n) for category in CATEGORIES for n in np.unique(drawing.masks[category]) if n}
    found = interventions(scene, shown)
    target = CLASSES.index(str(scene.label))
    again = [replace(scene, name=f"{scene.name}/noise{number}") for number in range(REDRAWN)]
    every = pixels([*again, *(each for one in found for each in one.alternatives)])
    values = log_odds(classifier, torch.cat([image.unsqueeze(0), every]), target)
    before, noisy = values[0], values[1 : 1 + REDRAWN]
    after = torch.split(values[1 + REDRAWN :], [len(one.alternatives) for one in found])
    means = torch.stack([each.mean() for each in after])
    shares = torch.stack([each.sigmoid().mean() for each in after])
    masks = [drawing.masks[one.label.category] == one.label.number for one in found]
    return Effects(
        scene=scene,
        image=image,
        target=target,
        predicted=int(classifier(image.unsqueeze(0)).logits.argmax()),
        interventions=found,
        effect=before - means,
        probability=before.sigmoid() - shares,
        noise=2 * float(noisy.std()),
        log_odds=float(before),
        masks=torch.from_numpy(np.stack(masks)),
    )
