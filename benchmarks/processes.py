"""Two processes on one core each against one: photographs per second of features and evaluation, without their start.

    python -m benchmarks.processes

Both run over few and over many photographs; the difference is what the photographs between cost. ResNet-18 with random weights, scenes of
Brodenette at 224, its vision-language model. Best of three.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision

from cefam.commands import main as cefam

CLASSIFIER = "{{class_path: cefam.load_classifier, init_args: {{name: resnet18, weights: {folder}/resnet18.pth}}}}"
VLM = "{class_path: cefam.load_vlm, init_args: {name: brodenette}}"


def seconds(words: list[str], processes: int, lightning: bool) -> float:
    """Seconds of a command with so many processes, one thread each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    launch = [] if lightning or processes == 1 else [
        "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"
    ]  # fmt: skip
    start = time.perf_counter()
    command = [sys.executable, *launch, "-m", "cefam", *words]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__.split("\n")[0])
    parser.add_argument("--counts", type=int, nargs=2, default=[64, 448])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in options.counts:
            words = ["--kind=brodenette", "--source=evaluation", f"--count={count}", "--samples_per_shard=16"]
            cefam(["prepare", *words, f"--folder={folder}/scenes-{count}"])
        torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18.pth")  # the same in all processes
        cefam(["demo", "--scenes=300", f"--folder={folder}/demo"])
        for verb in ("features", "evaluate"):
            rates = []
            for processes in (1, 2):
                best = 0.0
                for _ in range(options.repeats):
                    few, many = (
                        seconds(_words(verb, folder, count, processes), processes, verb == "evaluate")
                        for count in options.counts
                    )
                    best = max(best, (options.counts[1] - options.counts[0]) / (many - few))
                    shutil.rmtree(folder / "out", ignore_errors=True)
                rates.append(best)
                print(f"{verb}, {processes} process(es): {best:.1f} photographs/s", flush=True)
            found[verb] = rates[1] / rates[0]
            print(f"{verb}: two processes are {found[verb]:.2f} times one", flush=True)
    print(json.dumps(found))


def _words(verb: str, folder: Path, count: int, processes: int) -> list[str]:
    output = folder / "out" / f"{verb}-{count}-{time.monotonic_ns()}"
    if verb == "features":
        return [
            "features", f"--classifier={CLASSIFIER.format(folder=folder)}", f"--vlm={VLM}", f"--images={folder}/scenes-{count}",
            f"--folder={output}", "--size=224", "--resize=224", "--device=cpu", "--batch_size=16",
        ]  # fmt: skip
    return [
        "evaluate", "--config", "evaluate/broden", f"--model.artefact={folder}/demo/fit/checkpoints/best.ckpt",
        f"--data.shards={folder}/scenes-{count}", f"--model.output={output}", "--data.batch_size=8",
        "--model.methods={CE-FAM: CEFAMRegions}", "--trainer.enable_progress_bar=false",
        *(["--config", "trainer/ddp_cpu"] if processes == 2 else []),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
