"""RegionEvaluator: methods + pairs + masks -> values per pair. No Lightning, no files.

Its records are the source of every table; metric objects take the same values for logging.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cefam.classifier import ClassifierOutput
from cefam.concepts import ConceptSet
from cefam.explain import Preset
from cefam.explanation import ConceptPairs
from cefam.methods.base import Candidates, RegionMethod
from cefam.metrics import CATEGORIES, hits
from cefam.metrics.functional import Bounds, area_bounds, energy_pointing_game, nra_from_areas, region_area

PROTOCOLS = ("top1", "oracle")
METRICS = ("epg", "nra", "nra_calibrated", "hit")
# Bytes of the maps that are measured at once on the CPU: their copies, sorted and masked, stay in the caches.
CPU_CACHE = 4 * 2**20
IMAGE_LEVEL = ("scene", "texture")  # categories of Broden without masks (Table A1)


@dataclass(frozen=True)
class RegionBatch:
    """Photographs with their masks, ragged.

    Args:
        image: views (B, 3, H, W), uint8 or floats in [0, 1].
        ids: names of the images (B).
        masks: index maps (M, h, w), whole numbers.
        mask_image: whose mask it is (M,), index into the batch, ascending.
        mask_category: categories of the masks (M).
        pair_mask: mask of every pair (P,).
        pair_label: label number of every pair (P,).
    """

    image: Tensor
    ids: Sequence[str]
    masks: Tensor
    mask_image: Tensor
    mask_category: Sequence[str]
    pair_mask: Tensor
    pair_label: Tensor


@dataclass(frozen=True)
class MethodValues:
    """Values of one method under one protocol, all (P,): metrics are NaN where undefined."""

    epg: Tensor
    nra: Tensor
    nra_calibrated: Tensor
    hit: Tensor
    auc: Tensor
    stage: Tensor
    expressible: Tensor


@dataclass(frozen=True)
class PairValues:
    """Values of all methods for the P pairs of a batch that are in the concept set.

    ``pairs``; ``mask`` (P,): index of the mask in the batch; ``place`` (P,): the same among its image's masks; ``label`` (P,);
    ``category`` (P,): index into the evaluator's categories, -1 where the category is not measured; ``auc_high``,
    ``auc_low`` (P,); ``values[method][protocol]``; ``outside``: number of pairs whose label is not in the concept set.
    """

    pairs: ConceptPairs
    mask: Tensor
    place: Tensor
    label: Tensor
    category: Tensor
    auc_high: Tensor
    auc_low: Tensor
    values: dict[str, dict[str, MethodValues]]
    outside: Tensor


class RegionEvaluator:
    """Measure regions against masks.

    Args:
        methods: by name, in the order of the table.
        concepts: the concept set; labels of the masks are its numbers.
        num_candidates: among so many candidates the oracle chooses (4 in Table 1).
        preset: "published" or "paper"; see ``docs/conformance.md``.
        memory_limit: megabytes for the maps of one chunk of pairs.
    """

    def __init__(
        self,
        methods: Mapping[str, RegionMethod],
        concepts: ConceptSet,
        num_candidates: int = 4,
        preset: Preset = "published",
        memory_limit: float = 1024.0,
    ) -> None:
        if num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, got {num_candidates}.")
        self.methods, self.concepts, self.num_candidates = dict(methods), concepts, num_candidates
        self.preset, self.memory_limit = preset, memory_limit
        listed = {category for concept in concepts.concepts for category in concept.categories}
        others = sorted(listed - {*CATEGORIES, *IMAGE_LEVEL})
        self.categories = [category for category in CATEGORIES if category in listed] + others
        position = {category: index for index, category in enumerate(self.categories)}
        table = torch.full((max(concepts.numbers) + 1,), -1)
        table[torch.tensor(concepts.numbers)] = torch.arange(len(concepts))
        self._index_of_number = table
        self._category_of_concept = torch.tensor([position.get(c.category, -1) for c in concepts.concepts])
        self._position = position

    @torch.no_grad()
    def evaluate(self, batch: RegionBatch, output: ClassifierOutput) -> PairValues:
        """Measure every method on every pair of a batch, given the classifier's output for its images.

        Raises:
            ValueError: where a valid region holds values that are not finite.
        """
        device = batch.image.device
        self._index_of_number = index = self._index_of_number.to(device)
        self._category_of_concept = self._category_of_concept.to(device)
        concept = index[batch.pair_label.clamp_max(len(index) - 1)]
        concept = torch.where(batch.pair_label < len(index), concept, -1)
        kept = (concept >= 0).nonzero().squeeze(1)
        concept, mask, label = concept[kept], batch.pair_mask[kept], batch.pair_label[kept]
        place = mask - torch.searchsorted(batch.mask_image.contiguous(), batch.mask_image[mask])
        pairs = ConceptPairs(batch.mask_image[mask], concept, self._keys(batch, mask, place, label))
        if self.preset == "published":
            category = self._category_of_concept[concept]
        else:
            of_mask = [self._position.get(name, -1) for name in batch.mask_category]
            category = torch.tensor(of_mask, device=device, dtype=torch.long)[mask]
        height, width = batch.masks.shape[-2:]
        # Candidate maps, their sorted values and the counts of the metrics.
        maps_each = height * width * max(self.num_candidates, len(output.activations)) * 4
        size = max(1, int(self.memory_limit * 2**20 / (10 * maps_each)))
        chunks = [
            self._measure(batch, output, pairs[rows], batch.masks[mask[rows]] == label[rows].view(-1, 1, 1))
            for rows in (slice(start, start + size) for start in range(0, max(len(pairs), 1), size))
        ]
        values = {
            method: {protocol: _joined([chunk[1][method][protocol] for chunk in chunks]) for protocol in PROTOCOLS}
            for method in self.methods
        }
        high, low = (torch.cat([getattr(chunk[0], name) for chunk in chunks]) for name in ("high", "low"))
        return PairValues(
            pairs, mask, place, label, category, high, low, values, (batch.pair_label > 0).sum() - len(kept)
        )

    def _keys(self, batch: RegionBatch, mask: Tensor, place: Tensor, label: Tensor) -> Tensor:
        """A number per pair that depends on the image's name, the mask's place and the label, not on the batch."""
        named = torch.tensor([stable_hash(name) for name in batch.ids], device=mask.device)
        return named[batch.mask_image[mask]] + place * 65_537 + label

    def _measure(
        self, batch: RegionBatch, output: ClassifierOutput, pairs: ConceptPairs, mask: Tensor
    ) -> tuple[Bounds, dict[str, dict[str, MethodValues]]]:
        values: dict[str, dict[str, MethodValues]] = {}
        bounds = area_bounds(mask)
        for name, method in self.methods.items():
            candidates = method.regions(batch.image, output, pairs, mask.shape[-2:], self.num_candidates)
            values[name] = self._values(name, candidates, mask, bounds)
        return bounds, values

    def _values(self, name: str, candidates: Candidates, mask: Tensor, bounds: Bounds) -> dict[str, MethodValues]:
        _check_candidates(name, candidates, mask)
        auc, epg = self._areas_and_energy(candidates, mask)
        if not bool(auc.isfinite().all()):
            raise ValueError(
                f"{name} gave a region that holds values which are not finite: its pixels cannot be ranked. Look for NaN in the "
                f"activations, or mark such a candidate as not valid."
            )
        each = Bounds(*(bound.unsqueeze(1) for bound in bounds))
        nra, calibrated = nra_from_areas(auc, each, "published"), nra_from_areas(auc, each, "constant")
        if self.preset == "published":
            # The published loop keeps a candidate only if its NRA is above 0; else both values are recorded as 0.
            epg = torch.where(nra == 0, 0.0, epg)
        ranked = torch.where(candidates.valid, nra.nan_to_num(0), -1)
        expressible = candidates.valid.any(dim=1)
        result = {}
        for protocol, choice in (("top1", candidates.valid.long().argmax(dim=1)), ("oracle", ranked.argmax(dim=1))):
            pick = choice.unsqueeze(1)
            best = nra.gather(1, pick).squeeze(1)
            result[protocol] = MethodValues(
                epg=epg.gather(1, pick).squeeze(1),
                nra=best,
                nra_calibrated=calibrated.gather(1, pick).squeeze(1),
                hit=hits(best),
                auc=auc.gather(1, pick).squeeze(1),
                stage=candidates.stage.gather(1, pick).squeeze(1),
                expressible=expressible,
            )
        return result

    def _areas_and_energy(self, candidates: Candidates, masks: Tensor) -> tuple[Tensor, Tensor]:
        """AUC and EPG of every map, both (P, Q)."""
        pairs, count = candidates.valid.shape
        each = 4 * candidates.maps.shape[1:].numel()
        size = max(1, CPU_CACHE // each if masks.device.type == "cpu" else pairs)
        normalize: Any = "min-max" if self.preset == "published" else None
        auc, epg = [], []
        chunks = (torch.split(part, size) for part in (candidates.maps, candidates.valid, masks))
        for maps, valid, mask in zip(*chunks, strict=True):
            # What a map that is not valid holds is nobody's business.
            region = maps.float().masked_fill(~valid[..., None, None], 0).flatten(0, 1)
            repeated = mask.repeat_interleave(count, dim=0)
            auc.append(region_area(region, repeated))
            epg.append(energy_pointing_game(region, repeated, normalize))
        return torch.cat(auc).view(pairs, count), torch.cat(epg).view(pairs, count)


def _check_candidates(name: str, candidates: Any, mask: Tensor) -> None:
    """Refuse what is no :class:`Candidates` for these masks (P, H, W)."""
    if not isinstance(candidates, Candidates) or not all(isinstance(part, Tensor) for part in candidates):
        raise ValueError(f"{name} must give Candidates of tensors for every pair, got a {type(candidates).__name__}.")
    pairs, height, width = mask.shape
    count = candidates.maps.shape[1] if candidates.maps.dim() == 4 else 0
    found = [tuple(part.shape) for part in candidates]
    if not count or found != [(pairs, count, height, width), *[(pairs, count)] * 3]:
        raise ValueError(
            f"{name} must give maps ({pairs}, Q, {height}, {width}), with Q of at least 1, and score, stage and valid ({pairs}, Q), got "
            f"{', '.join(map(str, found))}."
        )
    if candidates.valid.dtype != torch.bool:
        raise ValueError(f"{name} must give `valid` as booleans, got {candidates.valid.dtype}.")


def stable_hash(name: str) -> int:
    """A 62-bit number from a name, the same in every process (Python's own hash is not)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 2


def _joined(parts: Sequence[MethodValues]) -> MethodValues:
    names = MethodValues.__dataclass_fields__
    return MethodValues(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})
