"""How fast Brodenette draws: scenes per second on one core, described, drawn, with all masks.

python -m benchmarks.drawing --count 500
"""

import argparse
import json
import time

from cefam.brodenette import describe, draw


def main() -> None:
    """Draw, and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drawing", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=500)
    count = parser.parse_args().count
    draw(describe("train", 0))  # textures are made once
    result = {}
    for split in ("train", "evaluation"):
        start = time.perf_counter()
        for index in range(count):
            draw(describe(split, index))
        result[split] = round(count / (time.perf_counter() - start), 1)
    print(json.dumps({"scenes_per_second": result, "count": count}))


if __name__ == "__main__":
    main()
