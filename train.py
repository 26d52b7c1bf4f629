"""Train a translator: ``python train.py --config train/features --data.init_args.train features/train ...``.

The same as ``cefam fit``.
"""

import sys

from cefam.cli import main

if __name__ == "__main__":
    sys.exit(main(["fit", *sys.argv[1:]]))
