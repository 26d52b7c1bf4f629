"""Comparison of two classes: mask a concept's region patch by patch until the prediction changes (Fig. 7)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.encoding import Networks
from cefam.attribution.explain import ExplainOptions, explain
from cefam.errors import CefamError
from cefam.explanations import ConceptExplanation, Photograph
from cefam.explanations.comparison import Comparison, Flip, differences
from cefam.images.views import resize_regions

GRID = 14  # patches per side, each 16 x 16 pixels at 224
STEPS = 20  # maximum number of masking steps
DRAWS = 5  # repetitions of the control with random patches
POOL = 32  # number of best-scoring concepts that are ranked by effect
SHOWN = 3  # number of concepts whose region is masked


def why_not(
    networks: Networks, photograph: Photograph, other: int, target: int | None, options: ExplainOptions
) -> Comparison:
    """Compare two classes; see :meth:`cefam.attribution.explainer.Explainer.why_not`."""
    among = networks.concepts.shown if options.candidates is None else options.candidates
    pool = max(options.top_k, min(POOL, len(among)))
    chosen = explain(networks, [photograph], target, replace(options, top_k=pool))[0]
    if chosen.target == other:
        raise CefamError(f"The photograph is taken for {chosen.target_name}: name a class that it is not taken for.")
    numbers = [networks.concepts.numbers.index(part.concept.number) for part in chosen]
    rival = explain(networks, [photograph], other, replace(options, top_k=pool, candidates=numbers))[0]
    leading = [part for part, _ in differences(chosen, rival) if part.contribution is None or part.contribution > 0]
    flips = [flip(networks, photograph, part, (chosen.target, other)) for part in leading[:SHOWN]]
    flips.sort(key=lambda each: (each.at is None, each.at or 0))
    for explanation in (chosen, rival):
        del explanation.concepts[options.top_k :]
    return Comparison(chosen, rival, flips)


def flip(networks: Networks, photograph: Photograph, part: ConceptExplanation, classes: tuple[int, int]) -> Flip:
    """Mask a concept's region in its view, strongest patches first, until the predicted class changes.

    Masked patches get the mean color of the view. Masked images are out of distribution, so random patches serve as a control.
    """
    where = networks.device
    view = photograph.view.to(where)
    size = (view.shape[-2], view.shape[-1])
    grid = (min(GRID, size[0]), min(GRID, size[1]))
    region = resize_regions(part.maps[part.shown].float().unsqueeze(0).to(where), size)
    strength = F.adaptive_avg_pool2d(region, grid).flatten()
    order = strength.argsort(descending=True, stable=True)[: int((strength > 0).sum())]
    counts = torch.linspace(0, len(order), min(len(order), STEPS) + 1).round().long().tolist()
    probabilities = _hidden(networks, view, order, counts, grid)
    step, becomes = _changed(probabilities)
    at = None if step is None else counts[step]
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(DRAWS if len(order) else 0):
        drawn = torch.randperm(len(strength), generator=generator)[: len(order)].to(where)
        found.append(_changed(_hidden(networks, view, drawn, counts, grid))[0])
    times = [counts[step] for step in found if step is not None]
    return Flip(
        part=part,
        counts=counts,
        probabilities=probabilities[:, list(classes)].cpu(),
        patches=len(order),
        grid=len(strength),
        at=at,
        becomes="" if becomes is None else networks.classifier.class_name(becomes),
        view=_masked(view, order[: len(order) if at is None else at], grid).cpu(),
        random=sum(times) / len(times) if times else None,
        random_share=len(times) / DRAWS,
    )


def _changed(probabilities: Tensor) -> tuple[int | None, int | None]:
    """First step at which another class is predicted than with nothing masked, and that class; ``None`` if there is none."""
    first = probabilities.argmax(dim=1)
    changed = (first != first[0]).nonzero().flatten()
    return (int(changed[0]), int(first[changed[0]])) if len(changed) else (None, None)


def _hidden(networks: Networks, view: Tensor, order: Tensor, counts: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """Class probabilities with the first ``counts[s]`` patches of ``order`` masked: (S, classes), double."""
    views = torch.stack([_masked(view, order[:count], grid) for count in counts])
    return networks.classifier.probabilities(networks.classifier(views).logits)


def _masked(view: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """A view (3, h, w) with patches (n,) in its mean color."""
    hidden = torch.zeros(grid[0] * grid[1], device=view.device).scatter_(0, patches, 1.0)
    mask = F.interpolate(hidden.view(1, 1, *grid), view.shape[-2:], mode="nearest")[0] > 0
    mean = view.float().mean(dim=(-2, -1), keepdim=True).to(view.dtype)
    return torch.where(mask, mean, view)
