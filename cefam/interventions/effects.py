"""Interventional effects of a scene's concepts on a classifier (CaCE, arXiv 1907.07165)."""

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

REDRAWN = 8  # number of redraws of a scene's noise
BATCH = 128
EDGE = 30.0  # log-odds are clamped here: the probability is 0 or 1 to 13 digits


@dataclass(frozen=True)
class Effects:
    """One scene and the effects of its concepts."""

    scene: Scene  # description of the scene
    image: Tensor  # (3, H, W), uint8
    target: int  # class of the scene
    predicted: int  # predicted class
    interventions: list[Intervention]  # interventions on P concepts
    effect: Tensor  # log-odds of the class before minus the mean over the alternatives (P,)
    probability: Tensor  # the same difference of the class's probability (P,)
    noise: float  # two standard deviations of the log-odds over redraws of the noise; smaller effects do not count
    log_odds: float  # log-odds of the class in the unedited scene
    masks: Tensor  # where each concept is visible (P, H, W), boolean

    @property
    def numbers(self) -> list[int]:
        """Numbers of the concepts."""
        return [each.label.number for each in self.interventions]

    @property
    def needed(self) -> Tensor:
        """Whether the class's rule includes each concept (P,), boolean."""
        return torch.tensor([each.needed for each in self.interventions])

    @property
    def right(self) -> bool:
        """Whether the prediction is correct."""
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
