"""Presence scores: image-level concept scores, collected while regions are measured."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cefam.attribution.scores import similarity
from cefam.attribution.types import Activated
from cefam.evaluation.evaluator import LabeledPairs, RegionEvaluator
from cefam.pairs import RegionBatch
from cefam.towers.stages import ClassifierOutput
from cefam.towers.vlm import VisionLanguageModel, encode_images


def presence_scores(
    evaluator: RegionEvaluator,
    batch: RegionBatch,
    output: ClassifierOutput,
    found: LabeledPairs,
    vlm: VisionLanguageModel | None = None,
) -> dict[str, np.ndarray]:
    """Scores (B, T) of each method that has them, and booleans (B, T): concept present, and concept's category annotated.

    With ``vlm``, also its own similarities, as the row "VLM".
    """
    activated = Activated(batch.image, output)
    concepts = evaluator.concepts.concepts
    present = torch.zeros(len(batch.image), len(concepts), dtype=torch.bool, device=batch.image.device)
    present[found.pairs.image, found.pairs.concept] = True
    shown: list[set[str]] = [set() for _ in batch.ids]
    for image, category in zip(batch.mask_image.tolist(), batch.mask_category, strict=True):
        shown[image].add(category)
    known = np.array([[concept.category in of_image for concept in concepts] for of_image in shown])
    scores = {name: method.presence(activated) for name, method in evaluator.methods.items()}
    if vlm is not None:
        embedding = encode_images(vlm, batch.image).float()
        text = evaluator.concepts.require_embeddings().to(embedding)
        scores["VLM"] = similarity(embedding, text, evaluator.concepts.logit_scale, evaluator.concepts.logit_bias)
    named = {f"score.{name}": score.float().cpu().numpy() for name, score in scores.items() if score is not None}
    return {**named, "present": present.cpu().numpy(), "known": known}


def joined(batches: Sequence[dict[str, np.ndarray]]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Concatenated :func:`presence_scores` of all batches: scores (N, T) by method, present (N, T), annotated (N, T)."""
    every: Any = {name: torch.from_numpy(np.concatenate([batch[name] for batch in batches])) for name in batches[0]}
    scores = {name.removeprefix("score."): value for name, value in every.items() if name.startswith("score.")}
    return scores, every["present"], every["known"]
