"""Train a translator: ``python train.py --config train/resnet50_clip --data.init_args.train my_images``.

The same as ``cefam fit``.
"""

import sys

from cefam.cli import main

if __name__ == "__main__":
    sys.exit(main(["fit", *sys.argv[1:]]))
