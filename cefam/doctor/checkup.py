"""Find unreliable concepts: indistinguishable ones, ones that the translator did not learn, and false positives."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

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
    problems: dict[int, list[str]] = field(default_factory=dict)

    def doubt(self, index: int, reason: str) -> None:
        """Add a reason to doubt a concept."""
        self.problems.setdefault(self.explainer.concepts.numbers[index], []).append(reason)


def measure(explainer: Explainer, batches: Iterable[tuple[Tensor, Tensor | None]]) -> Measured:
    """Compute the evidence with an explainer, and similarities with its VLM if it is loaded.

    Args:
        explainer: the explainer, with its concepts.
        batches: views (B, 3, h, w), and ground truth (B, T) as in :class:`Measured`, or ``None``.
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
    _equal_prompts(measured)
    _alike(measured)
    if measured.vlm is not None:
        for index, value in enumerate(correlations(measured.said, measured.vlm).tolist()):
            if value < LEARNED:
                measured.doubt(index, f"its score does not follow the VLM's (correlation {value:.2f})")
    if measured.there is not None:
        false, true = called_present(measured.said, measured.there)
        for index, (without, having) in enumerate(zip(false.tolist(), true.tolist(), strict=True)):
            if without > FALSE and not having - without >= GAIN:  # NaN: too few images have it
                rates = f"{percent(without)} of the photographs without it, and in {percent(having)} of those with it"
                measured.doubt(index, f"it is called present in {rates}")
    concepts = measured.explainer.concepts
    shown = {concepts.numbers[index] for index in concepts.shown}
    return {number: "; ".join(reasons) for number, reasons in sorted(measured.problems.items()) if number in shown}


def _equal_prompts(measured: Measured) -> None:
    prompts = measured.explainer.concepts.prompts
    counts = Counter(prompts)
    for index, prompt in enumerate(prompts):
        if counts[prompt] > 1:
            measured.doubt(index, f"{counts[prompt]} concepts have the prompt {prompt!r}")


def _alike(measured: Measured, rows: int = 512) -> None:
    """Find concepts whose similarities are strongly correlated; similar text embeddings alone are not evidence."""
    unit = _unit(measured.said)
    words, prompts = measured.explainer.concepts.words, measured.explainer.concepts.prompts
    for start in range(0, unit.shape[1], rows):
        together = unit[:, start : start + rows].T @ unit
        for row, column in (together > ALIKE).nonzero().tolist():
            one, other = start + row, column
            if one != other and prompts[one] != prompts[other]:
                measured.doubt(
                    one, f"it cannot be told from {words[other]!r} (correlation {together[row, column]:.2f})"
                )


def _unit(values: Tensor) -> Tensor:
    """Columns centered and normalized to length 1."""
    moved = values.double() - values.double().mean(dim=0)
    unit: Tensor = moved / moved.norm(dim=0).clamp_min(1e-12)
    return unit


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
