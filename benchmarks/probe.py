"""Peak memory and files of ``cefam probe`` at two sizes of the probe set, ten-fold apart.

    python -m benchmarks.probe

Scenes of Brodenette and its two small networks; each size runs in a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from cefam.io.files import write_text


def one(scenes: Path, count: int) -> dict[str, float]:
    """Probe a folder of shards; megabytes before and at the most, and on disk."""
    from cefam import load_classifier, load_vlm
    from cefam.probe import Probe
    from cefam.probe.compute import compute_probe

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    classifier, vlm = load_classifier("brodenette"), load_vlm("brodenette")
    with tempfile.TemporaryDirectory() as folder:
        before = peak()
        compute_probe(classifier, vlm, str(scenes), folder, size=96, resize=96, device="cpu")
        probe = Probe.read(folder)
        disk = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
        return {
            "photographs": count, "before": before, "peak": peak(), "disk": disk, "chosen": len(probe.embedding)
        }  # fmt: skip


def main() -> None:
    """Draw, measure in processes of their own, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__.split("\n")[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--one", type=Path, help="a folder of shards, probed in this process")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/probe.json"))
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(one(options.one, options.counts[0])))
        return
    found = []
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            words = ["--kind", "brodenette", "--source", "train", "--count", str(count), "--masks", "[]"]
            prepare = [sys.executable, "-m", "cefam", "prepare", *words, "--folder", f"{folder}/scenes"]
            subprocess.run(prepare, check=True, capture_output=True)
            measure = [sys.executable, "-m", "benchmarks.probe", "--one", f"{folder}/scenes", "--counts", str(count)]
            printed = subprocess.run(measure, check=True, capture_output=True, text=True)
            found.append(json.loads(printed.stdout.splitlines()[-1]))
            print({name: round(value, 1) for name, value in found[-1].items()}, flush=True)
    write_text(options.output, json.dumps({"megabytes": found}, indent=1))


if __name__ == "__main__":
    main()
