"""The report of a large evaluation, from synthetic records: Broden's 63,000 photographs with 17.5 pairs each, five methods.

    python -m benchmarks.report --images 63000

Prints how long records take to be merged into one sorted file, and a table with its intervals to be made of them, and the largest
memory of the process. The records are drawn, so the numbers in the table mean nothing.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from cefam.concepts.categories import CATEGORIES
from cefam.evaluation.evaluator import PROTOCOLS
from cefam.report import records, results, tables

METHODS = ("CE-FAM", "CLIP-Dissect", "WWW", "random channel", "random map")
EACH = 17.5  # pairs of a photograph


def drawn(images: int, random: np.random.Generator) -> Iterator[list[str]]:
    """Records as the parts of an evaluation hold them."""
    for image in range(images):
        for pair in range(random.poisson(EACH)):
            category = CATEGORIES[pair % len(CATEGORIES)]
            for method in METHODS:
                expressible = "0" if method == "WWW" and pair % 5 == 0 else "1"
                for protocol in PROTOCOLS:
                    values = [f"{value:.9g}" for value in random.random(len(records.values()))]
                    yield [
                        f"{image:06d}.jpg",
                        "0",
                        str(pair),
                        f"word {pair}",
                        category,
                        method,
                        protocol,
                        *values,
                        "1",
                        expressible,
                    ]


def main() -> None:
    """Draw, merge, make the table, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=63_000)
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder) / "records.csv", time.perf_counter()
        for _ in drawn(min(images, 2000), np.random.default_rng(0)):
            pass
        drawing = (time.perf_counter() - start) * images / min(images, 2000)
        start = time.perf_counter()
        records.merge(drawn(images, np.random.default_rng(0)), path)
        merging = time.perf_counter() - start - drawing
        start = time.perf_counter()
        about = results.Run(list(METHODS), list(CATEGORIES), 4, "published")
        table = results.table_of(about, partial(records.blocks, path))
        making = time.perf_counter() - start
        count = sum(row.pairs or 0 for row in table.rows if "common" not in row.protocol)
        print(tables.to_text(table))
        print(
            f"{count} records, {path.stat().st_size / 1e9:.2f} GB: merged in {merging:.0f} s, table in {making:.0f} s."
        )
    print(f"Largest memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB.")


if __name__ == "__main__":
    main()
