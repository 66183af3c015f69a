"""``python -m loadtests.bench NAME …``."""

import sys

from loadtests.bench.figures import main

sys.exit(main())
