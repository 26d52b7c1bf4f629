"""RegionEvaluator: measures the regions of methods against masks; returns values per pair and, on request, candidates.

It uses neither Lightning nor files; :mod:`cefam.evaluation.module` runs it in a Trainer. All tables and logged metrics are
computed from its values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from cefam.attribution.batching import chunks
from cefam.attribution.types import Activated
from cefam.concepts.categories import BACKGROUND, CATEGORIES, IGNORED, IMAGE_LEVEL
from cefam.concepts.sets import ConceptSet
from cefam.errors import CefamError
from cefam.evaluation.controls import control_values, others
from cefam.methods.base import RegionMethod
from cefam.metrics.functional import Bounds, area_bounds
from cefam.metrics.table import CONTROLS, Measured, chosen
from cefam.pairs import Candidates, ConceptPairs, RegionBatch, index_of_numbers, labeled, stable_hash
from cefam.settings import MethodSettings
from cefam.towers.stages import ClassifierOutput

PROTOCOLS = ("top1", "oracle")
# Bytes of maps measured at once on the CPU, so that their sorted and masked copies fit into the caches.
CPU_CACHE = 4 * 2**20


@dataclass(frozen=True)
class LabeledPairs:
    """The P pairs of a batch whose label is in the concept set.

    ``mask`` (P,): index of the mask in the batch; ``place`` (P,): index of the mask among its image's masks; ``label`` (P,):
    label number; ``category`` (P,): index into the evaluator's categories, -1 if the category is not measured; ``outside``:
    number of pairs whose label is not in the concept set.
    """

    pairs: ConceptPairs
    mask: Tensor
    place: Tensor
    label: Tensor
    category: Tensor
    outside: Tensor


class MethodValues(NamedTuple):
    """Values of one method under one protocol, all (P,).

    ``metrics``: metric values by name, NaN where undefined; ``auc``: area under the IoU curve; ``stage``: stage of the chosen
    candidate; ``expressible``: whether the method has a region for the concept.
    """

    metrics: dict[str, Tensor]
    auc: Tensor
    stage: Tensor
    expressible: Tensor


class MeasuredCandidates(NamedTuple):
    """Candidates of k pairs, their NRA (k, Q), and the index of each protocol's choice (k,)."""

    candidates: Candidates
    nra: Tensor
    choice: dict[str, Tensor]


@dataclass(frozen=True)
class PairValues:
    """Results for the pairs ``found``: area bounds (P,), values by method and protocol, and the kept candidates by method."""

    found: LabeledPairs
    auc_high: Tensor
    auc_low: Tensor
    values: dict[str, dict[str, MethodValues]]
    kept: dict[str, MeasuredCandidates]


class RegionEvaluator:
    """Measure regions against masks.

    Args:
        methods: methods by name, in the order of the table.
        concepts: the concept set; mask labels are its numbers.
        num_candidates: number of candidates the oracle chooses from (4 in Table 1).
        settings: preset, and memory limit for the maps of one chunk of pairs.
        metrics: names of secondary metrics to measure in addition.
    """

    def __init__(
        self,
        methods: Mapping[str, RegionMethod],
        concepts: ConceptSet,
        num_candidates: int = 4,
        settings: MethodSettings | None = None,
        metrics: Sequence[str] = (),
    ) -> None:
        if num_candidates < 1:
            raise CefamError(f"num_candidates must be at least 1, got {num_candidates}.")
        if not methods:
            raise CefamError("There is no method to measure: name at least one.")
        self.methods, self.concepts, self.num_candidates = dict(methods), concepts, num_candidates
        self.settings, self.secondary = settings or MethodSettings(), tuple(metrics)
        chosen(self.secondary)  # raises an error for an unknown name
        listed = {category for concept in concepts.concepts for category in concept.categories}
        more = sorted(listed - {*CATEGORIES, *IMAGE_LEVEL, BACKGROUND})
        self.categories = [category for category in CATEGORIES if category in listed] + more
        self._position = {category: index for index, category in enumerate(self.categories)}
        self._index_of_number = index_of_numbers(concepts.numbers)
        self._category_of_concept = torch.tensor([self._position.get(c.category, -1) for c in concepts.concepts])

    def find(self, batch: RegionBatch) -> LabeledPairs:
        """The pairs of a batch whose label is in the concept set."""
        device = batch.image.device
        self._index_of_number = self._index_of_number.to(device)
        self._category_of_concept = self._category_of_concept.to(device)
        rows, concept = labeled(batch, self._index_of_number)
        mask, label = batch.pair_mask[rows], batch.pair_label[rows]
        image = batch.mask_image[mask]
        place = mask - torch.searchsorted(batch.mask_image.contiguous(), image)
        # The key depends on image, mask and label, not on the batch.
        hashed = torch.tensor([stable_hash(name) for name in batch.ids], device=device)
        pairs = ConceptPairs(image, concept, hashed[image] + place * 65_537 + label)
        if self.settings.preset == "published":
            category = self._category_of_concept[concept]
        else:
            of_mask = [self._position.get(name, -1) for name in batch.mask_category]
            category = torch.tensor(of_mask, device=device, dtype=torch.long)[mask]
        return LabeledPairs(pairs, mask, place, label, category, (batch.pair_label > 0).sum() - len(rows))

    @torch.no_grad()
    def evaluate(
        self, batch: RegionBatch, output: ClassifierOutput, found: LabeledPairs | None = None, keep: Sequence[int] = ()
    ) -> PairValues:
        """Measure every method on every pair of a batch.

        Args:
            batch: photographs with masks.
            output: the classifier's output for them.
            found: result of :meth:`find` for the batch, if already computed.
            keep: indices of pairs whose candidates are kept, ascending.
        """
        found = self.find(batch) if found is None else found
        activated = Activated(batch.image, output)
        controls = others(self.concepts, found.pairs) if {*CONTROLS} & {*self.secondary} else None
        height, width = batch.masks.shape[-2:]
        # About 10 arrays of this size are needed: candidate maps, their sorted values and the counts of the metrics.
        maps_each = height * width * max(self.num_candidates, len(output.activations)) * 4
        size = max(1, int(self.settings.memory_limit * 2**20 / (10 * maps_each)))
        every = chunks(max(len(found.mask), 1), size)
        parts = [self._chunk(batch, activated, found, rows, keep, controls) for rows in every]
        # One device synchronization per batch, not one per chunk and method.
        whole = tree_map(lambda *each: torch.cat(each), *parts)
        finite = whole.finite.all(dim=0).tolist()
        for name, good in zip(self.methods, finite, strict=True):
            if not good:
                raise CefamError(
                    f"{name} gave a region with values that are not finite, so its pixels cannot be ranked. Look for NaN in the "
                    f"activations, or mark such a candidate as not valid."
                )
        return PairValues(found, whole.bounds.high, whole.bounds.low, whole.values, whole.kept if keep else {})

    def _chunk(
        self,
        batch: RegionBatch,
        activated: Activated,
        found: LabeledPairs,
        rows: slice,
        keep: Sequence[int],
        controls: Tensor | None,
    ) -> "_Part":
        """Measure all methods on one chunk of pairs; ``controls``: see :func:`cefam.evaluation.controls.others`."""
        pairs, of_pair = found.pairs[rows], batch.masks[found.mask[rows]]
        mask = of_pair == found.label[rows].view(-1, 1, 1)
        ignored = of_pair == IGNORED if batch.has_ignored else None
        bounds = _bounds(mask, ignored)
        kept = [row - rows.start for row in keep if rows.start <= row < rows.stop]
        kept_rows = torch.tensor(kept, device=mask.device, dtype=torch.long)
        part = _Part(bounds, {}, {}, torch.ones(1, len(self.methods), dtype=torch.bool, device=mask.device))
        for index, (name, method) in enumerate(self.methods.items()):
            candidates = method.regions(activated, pairs, mask.shape[-2:], self.num_candidates)
            _check_candidates(name, candidates, mask)
            values, area = self._measured(candidates, mask, ignored, bounds)
            nra = values["nra"]
            part.finite[0, index] = area.isfinite().all()
            ranked = torch.where(candidates.valid, nra.nan_to_num(0), -1)
            choice = {"top1": candidates.valid.long().argmax(dim=1), "oracle": ranked.argmax(dim=1)}
            if controls is not None:
                other = control_values(
                    method, activated, pairs, controls[rows], mask.shape[-2:],
                    lambda each: self._measured(each, mask, ignored, bounds)[0]["nra"],
                )  # fmt: skip
                values |= {control: nra - other[control].unsqueeze(1) for control in CONTROLS if control in values}
            part.values[name] = {
                protocol: MethodValues(
                    {metric: _picked(value, chosen) for metric, value in values.items()},
                    _picked(area, chosen),
                    _picked(candidates.stage, chosen),
                    candidates.valid.any(dim=1),
                )
                for protocol, chosen in choice.items()
            }
            part.kept[name] = MeasuredCandidates(
                Candidates(*(value[kept_rows] for value in candidates)),
                nra[kept_rows],
                {protocol: chosen[kept_rows] for protocol, chosen in choice.items()},
            )
        return part

    def _measured(
        self, candidates: Candidates, masks: Tensor, ignored: Tensor | None, bounds: Bounds
    ) -> tuple[dict[str, Tensor], Tensor]:
        """All metrics of every map, and its area, each (P, Q)."""
        pairs, count = candidates.valid.shape
        metrics = chosen(self.secondary)
        values: dict[str, list[Tensor]] = {name: [] for name in metrics}
        areas = []
        each = 4 * candidates.maps.shape[1:].numel()
        size = max(1, CPU_CACHE // each if masks.device.type == "cpu" else pairs)
        if ignored is not None:
            size = 1  # ignored pixels differ between pairs
        for rows in chunks(pairs, size):
            # The values of an invalid map are not used.
            region = candidates.maps[rows].float().masked_fill(~candidates.valid[rows, :, None, None], 0)
            mask = masks[rows].unsqueeze(1).expand_as(region)
            region, mask = region.flatten(0, 1), mask.flatten(0, 1)
            if ignored is not None:
                region, mask = (value[:, ~ignored[rows][0]].unsqueeze(1) for value in (region, mask))
            repeated = Bounds(*(bound[rows].repeat_interleave(count) for bound in bounds))
            measured = Measured(region, mask, repeated, self.settings.preset)
            for name, row in metrics.items():
                values[name].append(row.formula(measured))
            areas.append(measured.area)
        empty = bounds.high[:0]
        joined = {name: torch.cat([empty, *parts]).view(pairs, count) for name, parts in values.items()}
        return joined, torch.cat([empty, *areas]).view(pairs, count)


class _Part(NamedTuple):
    """Results for a chunk of pairs; ``finite`` (1, M): for each method, whether all its valid regions are finite."""

    bounds: Bounds
    values: dict[str, dict[str, MethodValues]]
    kept: dict[str, MeasuredCandidates]
    finite: Tensor


def _bounds(mask: Tensor, ignored: Tensor | None) -> Bounds:
    """Area bounds of the masks, without ignored pixels."""
    if ignored is None:
        return area_bounds(mask)
    each = [area_bounds(one[~without].view(1, 1, -1)) for one, without in zip(mask, ignored, strict=True)]
    return Bounds(*(torch.cat(parts) for parts in zip(*each, strict=True))) if each else area_bounds(mask)


def _picked(values: Tensor, choice: Tensor) -> Tensor:
    """The chosen entry of every row: (P, Q), (P,) -> (P,)."""
    return values.gather(1, choice.unsqueeze(1)).squeeze(1)


def _check_candidates(name: str, candidates: object, mask: Tensor) -> None:
    """Check that ``candidates`` are :class:`Candidates` with shapes that match the masks (P, H, W)."""
    if not isinstance(candidates, Candidates) or not all(isinstance(part, Tensor) for part in candidates):
        raise CefamError(f"{name} must give Candidates of tensors for every pair, got a {type(candidates).__name__}.")
    pairs, height, width = mask.shape
    count = candidates.maps.shape[1] if candidates.maps.dim() == 4 else 0
    shapes = [tuple(part.shape) for part in candidates]
    if not count or shapes != [(pairs, count, height, width), *[(pairs, count)] * 3]:
        raise CefamError(
            f"{name} must give maps ({pairs}, Q, {height}, {width}), with Q of at least 1, and score, stage and valid ({pairs}, Q), got "
            f"{', '.join(map(str, shapes))}."
        )
    if candidates.valid.dtype != torch.bool:
        raise CefamError(f"{name} must give `valid` as booleans, got {candidates.valid.dtype}.")
