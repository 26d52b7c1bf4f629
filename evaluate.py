"""Measure regions against masks: ``python evaluate.py --model.artefact exported --data.shards shards/broden``.

The same as ``cefam evaluate``.
"""

import sys

from cefam.commands import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(arguments if arguments[:1] == ["evaluate"] else ["evaluate", *arguments]))
