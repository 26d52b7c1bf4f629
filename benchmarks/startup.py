"""How long it takes to start: ``import cefam``, and the help of the verbs; the shortest of a few runs.

python -m benchmarks.startup
"""

import json
import subprocess
import sys
import time

LIGHT = ("prepare", "features", "export", "demo")


def seconds(*arguments: str, repeats: int = 3) -> float:
    """Wall time of a command, the shortest of ``repeats``."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure, and print JSON."""
    rows = {"python alone": seconds("-c", "pass"), "import cefam": seconds("-c", "import cefam")}
    rows["cefam --help"] = seconds("-m", "cefam", "--help")
    for verb in (*LIGHT, "fit", "evaluate"):
        rows[f"cefam {verb} --help"] = seconds("-m", "cefam", verb, "--help")
    print(json.dumps({name: round(value, 2) for name, value in rows.items()}, indent=1))


if __name__ == "__main__":
    main()
