"""CLIP-Dissect (Oikarinen and Weng, ICLR 2023): label each neuron with the concept that its top photographs show most.

The similarity functions take P (N, T), the cosines of N photographs and T concepts without a logit scale, and activations
(N, U) of U neurons; they return (U, T). For large probe sets the same values are computed from a :class:`cefam.probe.Probe`,
which stores only the required photographs.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.errors import CefamError
from cefam.methods.associations import Across, Associations, AssociationsAbout, per_concept, prompts_of
from cefam.methods.base import MethodContext
from cefam.methods.neurons import NeuronRegions, encoded, probe_of
from cefam.probe import Probe

Similarity = Literal["soft_wpmi", "wpmi", "rank_reorder", "cos_similarity", "cos_similarity_cubed"]
EPSILON = 1e-7  # added inside the logarithm; not a lower limit
NUMBERS = 2**23  # maximum number of doubles in an intermediate result


class Published(NamedTuple):
    """Constants of a similarity: photographs per neuron, multiplier of P, weight of the prior, first and last membership."""

    top_k: int
    a: float
    lam: float
    p_start: float
    p_end: float


SOFT, HARD = Published(100, 10.0, 1.0, 0.998, 0.97), Published(28, 2.0, 0.6, 1.0, 1.0)


def soft_wpmi(
    similarity: Tensor,
    activations: Tensor,
    top_k: int = SOFT.top_k,
    a: float = SOFT.a,
    lam: float = SOFT.lam,
    p_start: float = SOFT.p_start,
    p_end: float = SOFT.p_end,
) -> Tensor:
    """Soft weighted pointwise mutual information, the default of CLIP-Dissect: (N, T), (N, U) -> (U, T), double.

    log p(photographs of u | t) - lam * log mean_u p(photographs of u | t), where the r-th photograph of a neuron has membership
    p_start - (p_start - p_end) r / top_k. The mean is over the given neurons, so whole stages should be scored at once.

    Args:
        similarity: P.
        activations: activations of the neurons.
        top_k: photographs per neuron; ties go to the first.
        a: multiplier of P in the softmax over the concepts.
        lam: weight of the prior.
        p_start: membership of the first photograph.
        p_end: limit of the membership, not reached by the last photograph.
    """
    return _wpmi(similarity, _top_rows(activations, top_k), a, lam, _membership(top_k, p_start, p_end))


def wpmi(
    similarity: Tensor, activations: Tensor, top_k: int = HARD.top_k, a: float = HARD.a, lam: float = HARD.lam
) -> Tensor:
    """Weighted pointwise mutual information: :func:`soft_wpmi` with membership 1 for every photograph."""
    return _wpmi(similarity, _top_rows(activations, top_k), a, lam, _membership(top_k, HARD.p_start, HARD.p_end))


def cos_similarity(similarity: Tensor, activations: Tensor) -> Tensor:
    """Cosine of activations and similarities over the photographs; 0 for a neuron that is never active."""
    return F.normalize(activations.double(), dim=0).T @ F.normalize(similarity.double(), dim=0)


def cos_similarity_cubed(similarity: Tensor, activations: Tensor, floor: float = 1e-3) -> Tensor:
    """Cosine of the cubed, mean-centered activations and similarities; norms are clamped to at least ``floor``."""

    def cube(values: Tensor) -> Tensor:
        cubed = (values.double() - values.double().mean(dim=0)) ** 3
        length: Tensor = cubed.norm(dim=0)
        return cubed / length.clamp_min(floor)

    return cube(activations).T @ cube(similarity)


def rank_reorder(
    similarity: Tensor,
    activations: Tensor,
    top_fraction: float = 0.05,
    power: float = 3.0,
    scale: float = 0.5,
    seed: int = 0,
) -> Tensor:
    """Negative error of ordering a neuron's largest activations by the concept: (N, T), (N, U) -> (U, T), double.

    The error is the mean of |difference|^power over the neuron's top photographs, divided by the same mean for five random
    orders and by (mean similarity of these photographs)^scale. The published program does not seed its random orders and
    returns NaN for a negative mean similarity; here the orders are seeded and the mean is clamped to at least 0.001.

    Args:
        similarity: P.
        activations: activations of the neurons.
        top_fraction: share of the photographs that is used.
        power: exponent of the differences.
        scale: exponent of the mean similarity.
        seed: seed of the random orders.
    """
    count = max(int(top_fraction * len(activations)), 2)
    rows = _top_rows(activations, count)
    random = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(count, generator=random) for _ in range(5)])
    found = []
    for neuron in range(rows.shape[1]):
        descending = activations[rows[:, neuron], neuron].double()
        ascending, shown = descending.flip(0), similarity[rows[:, neuron]].double()
        ranks = shown.argsort(dim=0, stable=True).argsort(dim=0)
        error = (descending.unsqueeze(1) - ascending[ranks]).abs().pow(power).mean(dim=0)
        chance = (descending - ascending[orders]).abs().pow(power).mean()
        found.append(-error / chance.clamp_min(1e-30) / shown.mean(dim=0).clamp_min(1e-3) ** scale)
    return torch.stack(found)


def _top_rows(activations: Tensor, count: int) -> Tensor:
    """Indices of each neuron's most activating photographs (count, U), descending; ties keep their order."""
    if len(activations) < count:
        raise CefamError(f"{len(activations)} photograph(s) are fewer than the {count} per neuron.")
    return activations.argsort(dim=0, descending=True, stable=True)[:count]


def _membership(top_k: int, start: float, end: float) -> Tensor:
    return start - (start - end) * torch.arange(top_k, dtype=torch.double) / top_k


def _wpmi(similarity: Tensor, rows: Tensor, a: float, lam: float, membership: Tensor) -> Tensor:
    """(Soft) WPMI from the photographs ``rows`` (K, U) of every neuron, in chunks of concepts and neurons: (U, T).

    Log-likelihoods are about -460, where single precision is coarser than their differences; hence double precision.
    """
    exact = similarity.double() * a
    whole = exact.logsumexp(dim=1, keepdim=True)  # log-normalizer of each photograph's softmax over concepts
    top, neurons = rows.shape
    weight = membership.to(exact.device).view(-1, 1, 1)
    evidence = exact.new_empty(neurons, exact.shape[1])
    across = max(1, NUMBERS // max(len(exact), 1))
    for first in range(0, exact.shape[1], across):
        share = (exact[:, first : first + across] - whole).exp()
        size = max(1, NUMBERS // (top * share.shape[1]))
        for start in range(0, neurons, size):
            terms = torch.log1p(weight * (share[rows[:, start : start + size]] - 1) + EPSILON)
            evidence[start : start + size, first : first + across] = terms.sum(dim=0)
    prior = evidence.logsumexp(dim=0) - torch.tensor(neurons, dtype=torch.double).log()
    return evidence - lam * prior


def _of_probe(probe: Probe, text: Tensor, stage: int, similarity: Similarity) -> Tensor:
    """Similarities (C_l, T) of a stage's neurons with text embeddings (T, D)."""
    if similarity in ("soft_wpmi", "wpmi"):
        top_k, a, lam, start, end = SOFT if similarity == "soft_wpmi" else HARD
        rows = probe.photograph[stage][:top_k]
        if len(rows) < top_k:
            raise CefamError(
                f"{similarity} takes {top_k} photographs per neuron, the probe {probe.folder} holds {len(rows)}: run `cefam probe` "
                f"again with `--top {top_k}`."
            )
        return _wpmi(probe.embedding @ text.T, rows, a, lam, _membership(top_k, start, end))
    if similarity == "cos_similarity":
        exact = text.double()
        lengths = probe.square[stage].sqrt().unsqueeze(1) * (exact @ probe.gram * exact).sum(dim=1).sqrt()
        return probe.cross[stage] @ exact.T / lengths.clamp_min(1e-12)
    function: Callable[[Tensor, Tensor], Tensor] = (
        rank_reorder if similarity == "rank_reorder" else cos_similarity_cubed
    )
    embedding, activations = probe.everything(stage)
    return function(embedding @ text.T, activations)


def dissect(
    context: MethodContext,
    similarity: Similarity = "soft_wpmi",
    prompt: str | None = "{}",
    every: bool = False,
    kept: int = 64,
) -> Associations:
    """Associate every neuron with the concept that describes it best."""
    if similarity not in get_args(Similarity):
        raise CefamError(f"similarity must be one of {', '.join(get_args(Similarity))}, got {similarity!r}.")
    probe = probe_of(context, "CLIP-Dissect")
    texts, of_concept = prompts_of(context.concepts, prompt)
    text, found = encoded(context, texts), []
    for stage in range(len(probe.value)):
        scores = _of_probe(probe, text, stage, similarity)
        if every:
            best = scores.topk(min(kept, len(scores)), dim=0)
            channel, value = best.indices.flatten(), best.values.flatten()
            described = torch.arange(scores.shape[1]).repeat(len(best.indices))
        else:
            value, described = scores.max(dim=1)
            channel = torch.arange(len(scores))
        found.append((stage, *per_concept(channel, described, value, of_concept)))
    options = {"similarity": similarity, "prompt": prompt, "every": every}
    return Associations.of_stages(AssociationsAbout.of(context, "clip_dissect", options, probe), found)


class CLIPDissectRegions(NeuronRegions):
    """Regions of the neurons that CLIP-Dissect labels with a concept; concepts without a neuron have no region.

    Args:
        context: must have a probe and a VLM, unless ``associations`` is given.
        similarity: "soft_wpmi" (default), "wpmi", "rank_reorder", "cos_similarity" or "cos_similarity_cubed"; scores are
            comparable only within the same function, concept set and stage.
        prompt: prompt template, with ``{}`` for the concept's word (published: "{}"); ``None``: each concept's own prompt.
        every: use the best neurons of every concept, even if another concept describes them better (not published).
        across: normalization of scores across stages: "raw" (published), "zscore" or "rank".
        stages: names of the stages whose neurons are used; ``None``: all.
        associations: folder of existing associations.
    """

    def __init__(
        self,
        context: MethodContext,
        similarity: Similarity = "soft_wpmi",
        prompt: str | None = "{}",
        every: bool = False,
        across: Across = "raw",
        stages: Sequence[str] | None = None,
        associations: str | None = None,
    ) -> None:
        found = Associations.read(associations) if associations else dissect(context, similarity, prompt, every)
        super().__init__(context, found, across, stages)
