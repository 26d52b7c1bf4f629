"""Scores of whole photographs, collected while regions are measured: whether a concept is there, apart from where."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cefam.evaluator import LabeledPairs, RegionEvaluator
from cefam.files import write_tensors
from cefam.methods.base import Activated
from cefam.pairs import RegionBatch
from cefam.towers.classifier import ClassifierOutput


class PresenceScores:
    """Scores of every method that has any, and what the photographs show, batch by batch.

    Memory: 4 bytes for every photograph, concept and method.

    Args:
        evaluator: with methods and concepts.
    """

    def __init__(self, evaluator: RegionEvaluator) -> None:
        self.evaluator = evaluator
        self.batches: list[dict[str, Tensor]] = []

    def add(self, batch: RegionBatch, output: ClassifierOutput, found: LabeledPairs) -> None:
        """Score a batch of photographs."""
        activated = Activated(batch.image, output)
        concepts = self.evaluator.concepts.concepts
        present = torch.zeros(len(batch.image), len(concepts), dtype=torch.bool, device=batch.image.device)
        present[found.pairs.image, found.pairs.concept] = True
        shown: list[set[str]] = [set() for _ in batch.ids]
        for image, category in zip(batch.mask_image.tolist(), batch.mask_category, strict=True):
            shown[image].add(category)
        known = torch.tensor([[concept.category in of_image for concept in concepts] for of_image in shown])
        scores = {name: method.presence(activated) for name, method in self.evaluator.methods.items()}
        named = {f"score.{name}": score.float().cpu() for name, score in scores.items() if score is not None}
        self.batches.append({**named, "present": present.cpu(), "known": known})

    def write(self, path: Path) -> None:
        """Write what this process has collected."""
        names = self.batches[0] if self.batches else {}
        write_tensors(path, {name: torch.cat([batch[name] for batch in self.batches]).contiguous() for name in names})


def joined(paths: Sequence[Path]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Scores (N, T) by method, what is present (N, T), and what is known (N, T), of all processes."""
    from safetensors.torch import load_file

    parts = [part for part in map(load_file, paths) if part]
    every = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    scores = {name.removeprefix("score."): value for name, value in every.items() if name.startswith("score.")}
    return scores, every["present"], every["known"]
