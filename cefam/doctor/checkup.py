"""Find unreliable concepts: indistinguishable ones, ones that the translator did not learn, and false positives."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional import pearson_corrcoef

from cefam.attribution.explainer import Explainer
from cefam.attribution.scores import similarity
from cefam.errors import CefamError
from cefam.explanations.text import percent
from cefam.towers.vlm import encode_images

ALIKE = 0.95  # correlation over images above which two concepts are indistinguishable
LEARNED = 0.3  # correlation with the VLM below which a concept counts as not learned
FALSE = 0.5  # maximum false positive rate of a concept,
GAIN = 0.2  # unless its true positive rate is higher by at least this much
FEWEST = 10  # minimum number of images for a correlation or a rate


@dataclass
class Measured:
    """Similarities over images.

    Args:
        explainer: the explainer that was measured.
        said: evidence minus its mean over the concepts, (N, T).
        vlm: the same for the VLM, or ``None``.
        there: ground truth (N, T): 1 = concept present, 0 = absent, -1 = unknown; or ``None``.
    """

    explainer: Explainer
    said: Tensor
    vlm: Tensor | None
    there: Tensor | None


def measure(explainer: Explainer, batches: Iterable[tuple[Tensor, Tensor | None]]) -> Measured:
    """Compute the evidence with an explainer, and similarities with its VLM if it is loaded.

    ``batches`` are of views (B, 3, h, w), and ground truth (B, T) as in :class:`Measured`, or ``None``.
    """
    concepts, said, vlm, there = explainer.concepts, [], [], []
    text = concepts.require_embeddings()
    for views, known in batches:
        said.append(_centered(explainer.evidence(views)))
        if explainer.vlm is not None:
            embedding = encode_images(explainer.vlm, views).float()
            vlm.append(_centered(similarity(embedding, text.to(embedding), concepts.logit_scale, 0.0)))
        if known is not None:
            there.append(known)
    count = sum(len(each) for each in said)
    if count < FEWEST:
        raise CefamError(f"Concepts are judged from at least {FEWEST} photographs, got {count}.")
    return Measured(explainer, torch.cat(said), torch.cat(vlm) if vlm else None, torch.cat(there) if there else None)


def _centered(similarities: Tensor) -> Tensor:
    """Similarities minus their mean over the concepts of each image; a concept counts as present from 0 on."""
    return (similarities - similarities.mean(dim=1, keepdim=True)).cpu()


def called(said: Tensor, there: Tensor) -> tuple[float, float]:
    """Precision, and false omission rate: the share of concepts called absent that are present."""
    known = there >= 0
    shares = [float((there[called & known] == 1).double().mean()) for called in (said >= 0, said < 0)]
    return shares[0], shares[1]


def judge(measured: Measured) -> dict[int, str]:
    """Reasons to doubt concepts, by concept number."""
    concepts, problems = measured.explainer.concepts, defaultdict[int, list[str]](list)
    for one, other, value in _alike(measured.said):
        problems[one].append(f"it cannot be told from {concepts.words[other]!r} (correlation {value:.2f})")
    if measured.vlm is not None:
        for index, value in enumerate(correlations(measured.said, measured.vlm).tolist()):
            if value < LEARNED:
                problems[index].append(f"its score does not follow the VLM's (correlation {value:.2f})")
    if measured.there is not None:
        false, true = called_present(measured.said, measured.there)
        for index, (without, having) in enumerate(zip(false.tolist(), true.tolist(), strict=True)):
            if without > FALSE and not having - without >= GAIN:  # NaN: too few images have it
                rates = f"{percent(without)} of the photographs without it, and in {percent(having)} of those with it"
                problems[index].append(f"it is called present in {rates}")
    return {concepts.numbers[index]: "; ".join(problems[index]) for index in sorted({*problems} & {*concepts.shown})}


def _alike(said: Tensor, rows: int = 512) -> Iterator[tuple[int, int, float]]:
    """Pairs of concepts that correlate over the images; similar text embeddings alone are not evidence."""
    unit = said.double() - said.double().mean(dim=0)
    unit = unit / unit.norm(dim=0).clamp_min(1e-12)
    for start in range(0, unit.shape[1], rows):  # of all concepts at once, the table may be large
        together = unit[:, start : start + rows].T @ unit
        for row, other in (together > ALIKE).nonzero().tolist():
            if start + row != other:
                yield start + row, other, float(together[row, other])


def correlations(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation, column by column: (N, T), (N, T) -> (T,); 0 where a column is constant."""
    return pearson_corrcoef(one.double(), other.double()).reshape(-1).nan_to_num(0)


def called_present(said: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """False positive rate (T,) and true positive rate (T,) of each concept; NaN for fewer than ten images."""
    rates = []
    for state in (0, 1):
        chosen = there == state
        count = chosen.sum(dim=0)
        rate = ((said >= 0) & chosen).sum(dim=0) / count
        rates.append(rate.masked_fill(count < FEWEST, torch.nan))
    return rates[0], rates[1]
