"""Measure regions against masks: ``python evaluate.py --model.artefact exported --data.shards shards/broden``.

The same as ``cefam evaluate``.
"""

import sys

from cefam.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
