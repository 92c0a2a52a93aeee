"""``python -m alkernels``: the command line."""

import sys

from alkernels.cli import main

sys.exit(main())
