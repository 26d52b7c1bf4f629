"""Pairs as rows of a contact sheet: regions of all stages, associations, and NRA where there is a mask."""

import torch
from torch import Tensor

from cefam.explain import Derivative, Explainer
from cefam.explanation import ConceptPairs, Encoding
from cefam.metrics.functional import normalized_region_accuracy
from cefam.report.figures import Example
from cefam.views import resize_regions


def examples(
    explainer: Explainer,
    encoding: Encoding,
    pairs: ConceptPairs,
    derivative: Derivative = "total",
    num_channels: int = 20,
    masks: Tensor | None = None,
) -> list[Example]:
    """One row per pair, on the CPU.

    Args:
        explainer: the method.
        encoding: of the images that the pairs point to.
        pairs: P pairs.
        derivative: of the regions.
        num_channels: K of the association, which chooses the stage that is framed.
        masks: (P, H, W), boolean; ``None``: there are none.
    """
    regions = explainer.regions(encoding, pairs, derivative)
    association = explainer.association(encoding, pairs, num_channels, regions)
    captions = [[f"assoc. {value:.2f}" for value in row] for row in association.tolist()]
    if masks is not None:
        resized = [resize_regions(region, masks.shape[-2:]) for region in regions.maps]
        nra = torch.stack([normalized_region_accuracy(region, masks) for region in resized], dim=1).tolist()
        captions = [
            [f"NRA {value:.2f}  {text}" for value, text in zip(*row, strict=True)]
            for row in zip(nra, captions, strict=True)
        ]
    score = explainer.scores(encoding)[pairs.image, pairs.concept].tolist()
    rows = []
    for row, (image, index) in enumerate(zip(pairs.image.tolist(), pairs.concept.tolist(), strict=True)):
        concept, picture = explainer.concepts.concepts[index], encoding.images[image]
        rows.append(
            Example(
                title=f"{concept.word} ({concept.category})\nscore {score[row]:.2g}",
                image=(picture.float() / 255 if picture.dtype == torch.uint8 else picture).cpu(),
                mask=None if masks is None else masks[row].cpu(),
                maps=[region[row].cpu() for region in regions.maps],
                captions=captions[row],
                chosen=int(association[row].argmax()),
            )
        )
    return rows
