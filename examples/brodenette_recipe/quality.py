"""How good the two towers are: accuracy, and retrieval per category."""

import torch
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision

from cefam import FrozenClassifier
from cefam.brodenette.rules import CAPTION_ONLY
from cefam.brodenette.vocabulary import LABELS
from cefam.concepts.sets import ConceptSet
from cefam.towers.vlm import VisionLanguageModel
from examples.brodenette_recipe.data import Scenes


@torch.no_grad()
def accuracy(classifier: FrozenClassifier, scenes: Scenes) -> float:
    """Share of scenes whose class is the most probable one."""
    right = [
        (classifier(images).logits.argmax(1) == label).sum()
        for images, label in zip(scenes.images.split(200), scenes.label.split(200), strict=True)
    ]
    return float(sum(right)) / len(scenes.label)


@torch.no_grad()
def compatible_share(classifier: FrozenClassifier, scenes: Scenes) -> float:
    """Share of the scenes that allow some classes and not others whose most probable class is one of those allowed."""
    telling = scenes.targets.gt(0).sum(dim=1) < scenes.targets.shape[1]
    right = torch.cat(
        [
            targets.gather(1, classifier(images).logits.argmax(1, keepdim=True)).squeeze(1) > 0
            for images, targets in zip(scenes.images.split(200), scenes.targets.split(200), strict=True)
        ]
    )
    return float(right[telling].float().mean())


@torch.no_grad()
def retrieval(vlm: VisionLanguageModel, scenes: Scenes) -> dict[str, dict[str, float]]:
    """Mean average precision of the prompts per category; words that only captions had are apart.

    The chance level, the mean share of scenes that show a concept, stands beside it.
    """
    concepts = ConceptSet.brodenette().embed(vlm)
    embedding = torch.cat([vlm.encode_image(images) for images in scenes.images.split(200)])
    score = torch.nn.functional.normalize(embedding, dim=-1) @ concepts.require_embeddings().T
    precision: Tensor = multilabel_average_precision(score / 2 + 0.5, scenes.concepts.long(), len(LABELS), average=None)
    present = scenes.concepts.float().mean(dim=0)
    result = {}
    for only_captions in (False, True):
        for category in ("object", "part", "color", "material"):
            rows = [
                row
                for row, label in enumerate(LABELS)
                if label.category == category and ((category, label.name) in CAPTION_ONLY) == only_captions
            ]
            name = f"{category}, captions only" if only_captions else category
            result[name] = {"mAP": float(precision[rows].mean()), "chance": float(present[rows].mean())}
    return result
