"""Train a translator: ``python train.py fit --config demo``; the word ``fit`` may be left out.

The same as ``cefam fit``.
"""

import sys

from cefam.commands import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(arguments if arguments[:1] == ["fit"] else ["fit", *arguments]))
