"""Peak memory of the evaluation at two numbers of pairs, ten-fold apart, under one limit; and whether it grows with time.

    python -m benchmarks.memory --classifier resnet18

Each measurement runs in a process of its own: a peak never goes down.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

from cefam.io.files import write_text

MEGABYTE = 1024  # kilobytes, the unit of ru_maxrss on Linux


def peak() -> float:
    """Largest resident size of this process so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE


def one(classifier: str, pairs_each: float, batches: int) -> dict[str, float]:
    """Evaluate batches of 8 images; memory before, and after 1, 10, 100 ... of them."""
    from benchmarks.regions import Setting

    setting = Setting(classifier, 8, "cpu", pairs_each)
    setting.classifier(setting.batch.image)
    result = {"pairs": len(setting.pairs), "before": peak()}
    for done in range(1, batches + 1):
        setting.evaluate("total" if done == 1 else "branch", chunk=128)
        if str(done).strip("0") == "1" or done == batches:  # 1, 10, 100 ...
            result[f"after {done}"] = peak()
    return result


def main() -> None:
    """Measure in processes of their own, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.split("\n")[0])
    parser.add_argument("--classifier", default="resnet18")
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--one", type=float, default=None, help="pairs per image, measured in this process")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/memory.json"))
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(one(options.classifier, options.one, options.batches)))
        return
    found = []
    for pairs_each, batches in ((10, 1), (100, 1), (2, options.batches)):
        arguments = ["--classifier", options.classifier, "--one", str(pairs_each), "--batches", str(batches)]
        printed = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", *arguments], check=True, capture_output=True, text=True
        )
        found.append(json.loads(printed.stdout.splitlines()[-1]))
        print({name: round(value) for name, value in found[-1].items()}, flush=True)
    write_text(options.output, json.dumps({"megabytes": found, "limit": 128}, indent=1))


if __name__ == "__main__":
    main()
