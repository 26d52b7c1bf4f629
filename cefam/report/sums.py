"""Sums of records by column, computed in one pass, for tables and confidence intervals."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from cefam.metrics.table import CONTROLS, inexpressible
from cefam.report.records import Block, blocks_of

# A map's last bits depend on the processor and on the other images in the batch. If two pixels swap ranks, NRA changes by
# less than this (measured in docs/reference/conformance.md). Pairs this close to the hit threshold are counted below the
# table.
NEAR = 0.005
THRESHOLD = 0.5  # NRA threshold of a hit
Key = tuple[str, str, str]  # protocol, method, category


class Sums:
    """Sums of records by protocol, method and category; one metric is also summed by image.

    Undefined pairs are skipped; pairs that a method cannot express get the value specified in METRICS.

    Args:
        metric: metric that is also summed by image, for confidence intervals.

    Attributes:
        counts: by key, numbers of "pairs", of those "undefined", "expressible", and "near" (within ``NEAR`` of the hit threshold).
        values: sum and number of values, by column and key.
        images: index of each image, by name.
        seen: indices of the images that have records, by protocol and method.
    """

    def __init__(self, metric: str = "nra") -> None:
        self.metric = metric
        self.counts: dict[Key, Counter[str]] = {}
        self.values: dict[str, dict[Key, tuple[float, int]]] = {}
        self.images: dict[str, int] = {}
        self.seen: dict[tuple[str, str], set[int]] = {}
        self._chunks: dict[Key, list[tuple[np.ndarray, np.ndarray]]] = {}  # image and value of the metric

    @classmethod
    def of(cls, blocks: Iterable[Block], left_out: set[int] | None = None, metric: str = "nra") -> "Sums":
        """Sum blocks of records; if some method lacks pairs (``left_out``), the others are also summed as "PROTOCOL common"."""
        sums = cls(metric)
        excluded = np.fromiter(left_out or (), np.int64, len(left_out or ()))
        for block in blocks:
            sums.add(block)
            if left_out:
                sums.add(block.where(~np.isin(block.pairs(), excluded)), " common")
        return sums

    @classmethod
    def of_records(cls, records: Iterable[dict[str, Any]], metric: str = "nra") -> "Sums":
        """Sum a few records from :func:`cefam.report.records.read`."""
        return cls.of(blocks_of(list(records)), metric=metric)

    def add(self, block: Block, suffix: str = "") -> None:
        """Add a block, with a suffix appended to its protocol names."""
        if not len(block.expressible):
            return
        keys = list(zip(block.text["protocol"], block.text["method"], block.text["category"], strict=True))
        known = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        code = np.fromiter(map(known.__getitem__, keys), np.int64, len(keys))
        for name in dict.fromkeys(block.text["image"]):
            self.images.setdefault(name, len(self.images))
        image = np.fromiter(map(self.images.__getitem__, block.text["image"]), np.int64, len(keys))
        defined = ~np.isnan(block.numbers["nra"])
        for (protocol, method, category), number in known.items():
            mine, key = code == number, (protocol + suffix, method, category)
            self.seen.setdefault(key[:2], set()).update(image[mine].tolist())
            if not category:
                continue
            told = mine & defined & block.expressible
            missing = int((mine & defined & ~block.expressible).sum())
            self.counts.setdefault(key, Counter()).update(
                pairs=int(mine.sum()),
                undefined=int((mine & ~defined).sum()),
                expressible=int(told.sum()),
                near=int((np.abs(block.numbers["nra"][told] - THRESHOLD) < NEAR).sum()),
            )
            for column, values in block.numbers.items():
                # A control is undefined, too, where there is no other concept.
                there = told & ~np.isnan(values) if column in CONTROLS else told
                self._add_values(column, key, values[there], missing)
            metric = block.numbers[self.metric]
            told &= ~np.isnan(metric) if self.metric in CONTROLS else told
            self._chunks.setdefault(key, []).append((image[told], metric[told]))

    @property
    def by_image(self) -> dict[Key, np.ndarray]:
        """Sum and number of the metric's values per image (2, images), by key."""
        found = {}
        for key, chunks in self._chunks.items():
            image, value = (np.concatenate(each) for each in zip(*chunks, strict=True))
            count = len(self.images)
            found[key] = np.stack([np.bincount(image, value, count), np.bincount(image, minlength=count)])
        return found

    def _add_values(self, column: str, key: Key, values: np.ndarray, missing: int) -> None:
        total, count = self.values.setdefault(column, {}).get(key, (0.0, 0))
        instead = inexpressible(column)
        if instead is not None:
            total, count = total + instead * missing, count + missing
        if count or len(values):
            self.values[column][key] = total + float(values.sum()), count + len(values)
