"""How hard the world is for rows that know nothing: what its clutter was tuned by, before any network was trained.

python -m examples.brodenette_study.clutter --count 120
"""

import argparse
import tempfile
from typing import Any

import torch

from cefam.commands.prepare import prepare
from cefam.concepts.sets import ConceptSet
from cefam.datasets.batches import region_loader
from cefam.evaluation.evaluator import RegionEvaluator
from cefam.images.views import EvaluationView
from cefam.methods import CenterRegions, LuminanceRegions, RandomMapRegions
from cefam.report import records, tables
from cefam.report.sums import Sums
from cefam.towers.stages import ClassifierOutput


def main() -> None:
    """Draw scenes of the split "tuning", measure, print."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.brodenette_study.clutter", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--count", type=int, default=120)
    count = parser.parse_args().count
    concepts = ConceptSet.brodenette()
    methods = {"random map": RandomMapRegions(), "center": CenterRegions(), "luminance": LuminanceRegions()}
    evaluator = RegionEvaluator(methods, concepts)
    found: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        prepare("brodenette", "tuning", f"{folder}/shards", count=count)
        for batch in region_loader(f"{folder}/shards", EvaluationView(None, None), 8, 0):
            values = evaluator.evaluate(batch, ClassifierOutput(torch.zeros(len(batch.ids), 1), [], []))
            found += records.rows_of(values, list(batch.ids), evaluator.categories, concepts)
    named = [dict(zip(records.columns(), row, strict=True)) for row in found]
    read = [{**row, **{name: float(row[name]) for name in records.values()}} for row in named]
    print(tables.to_text(tables.summarize(Sums.of_records(read), evaluator.categories, 4)))


if __name__ == "__main__":
    main()
