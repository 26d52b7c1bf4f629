"""``python -m cefam``."""

import sys

from cefam.cli import main

sys.exit(main())
