"""FunnyBirds' checks (ICCV 2023) on drawn scenes: concepts replace parts, a class's rule its minimal sufficient set."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cefam.brodenette.rules import CLASSES, RULES
from cefam.interventions.edits import changed, needs
from cefam.interventions.effects import Effects, pixels
from cefam.towers.classifier import FrozenClassifier

THRESHOLDS = np.linspace(0.01, 0.50, 80)  # importance thresholds, as shares of the sum
IRRELEVANT = 0.05  # a concept whose change lowers the log-odds by less than this share is irrelevant


def important(importance: Tensor) -> Tensor:
    """Which concepts are important at every threshold (80, P): those above a share of the sum of the positive importances."""
    total = importance.clamp_min(0).sum()
    return importance.unsqueeze(0) > torch.from_numpy(THRESHOLDS).unsqueeze(1) * total


class Predictions:
    """Predictions for a scene with sets of its concepts changed; every set is drawn only once."""

    def __init__(self, classifier: FrozenClassifier, found: Effects) -> None:
        self.classifier, self.found = classifier, found
        self.known: dict[tuple[bool, ...], int] = {}

    @torch.no_grad()
    def __call__(self, sets: Tensor) -> Tensor:
        """Classes (S,) for sets of changed concepts (S, P), boolean."""
        rows = [tuple(row) for row in sets.tolist()]
        new = list(dict.fromkeys(row for row in rows if row not in self.known))
        if new:
            labels = [each.label for each in self.found.interventions]
            scenes = [changed(self.found.scene, [c for c, cut in zip(labels, row, strict=True) if cut]) for row in new]
            self.known.update(zip(new, self.classifier(pixels(scenes)).logits.argmax(dim=1).tolist(), strict=True))
        return torch.tensor([self.known[row] for row in rows])


def check(says: Predictions, importance: Tensor) -> dict[str, list[float]]:
    """CSDC, PC, DC and D of one scene at every threshold, 80 values each; undefined checks are left out."""
    found, chosen = says.found, important(importance)
    answers: dict[str, list[float]] = {}
    irrelevant = found.effect < IRRELEVANT * abs(found.log_odds)
    if bool(irrelevant.any()):
        answers["D"] = (1 - (chosen & irrelevant).sum(dim=1).double() / irrelevant.sum()).tolist()
    if not found.right:
        return answers
    needed = found.needed
    if bool(needed.any()):
        answers["CSDC"] = ((chosen & needed).sum(dim=1).double() / needed.sum()).tolist()
    answers["PC"] = (says(~chosen) == found.predicted).double().tolist()
    answers["DC"] = (says(chosen) != found.predicted).double().tolist()
    return answers


def rivals(target: int) -> list[tuple[int, int, set[tuple[str, str]], set[tuple[str, str]]]]:
    """Pairs of classes that share two or more rule concepts with the target, and the concepts that only one of them shares."""
    mine = needs(CLASSES[target])
    shared = {CLASSES.index(rule.name): mine & needs(rule.name) for rule in RULES if rule.name != CLASSES[target]}
    close = [index for index, both in shared.items() if len(both) >= 2]
    found = []
    for position, one in enumerate(close):
        for other in close[position + 1 :]:
            first, second = shared[one] - shared[other], shared[other] - shared[one]
            if first and second:
                found.append((one, other, first, second))
    return found


def sensitivity(found: Effects, importance_for: Callable[[int], Tensor]) -> list[float]:
    """Target sensitivity of one scene: concepts shared with a class must weigh more in the explanation of that class.

    Returns:
        1 or 0 for each of two classes; empty if no two classes can be compared.
    """
    names = [(each.label.category, each.label.name) for each in found.interventions]
    for one, other, first, second in rivals(found.target):
        mine, theirs = ([row for row, name in enumerate(names) if name in group] for group in (first, second))
        if mine and theirs:
            for_one, for_other = importance_for(one), importance_for(other)
            return [
                float(for_one[mine].mean() > for_one[theirs].mean()),
                float(for_other[theirs].mean() > for_other[mine].mean()),
            ]
    return []


def curves(answers: Sequence[dict[str, list[float]]]) -> dict[str, np.ndarray]:
    """CSDC, PC, DC, D and completeness at every threshold (80,), averaged over scenes."""
    means = {}
    for name in ("CSDC", "PC", "DC", "D"):
        rows = [each[name] for each in answers if name in each]
        means[name] = np.mean(rows, axis=0) if rows else np.full(len(THRESHOLDS), np.nan)
    means["Com"] = ((means["CSDC"] + means["PC"] + means["DC"]) / 3 + means["D"]) / 2
    return means
