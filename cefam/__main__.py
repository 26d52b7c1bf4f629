"""``python -m cefam``."""

import sys

from cefam.commands import main

sys.exit(main())
