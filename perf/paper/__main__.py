"""`python -m hrt.perf.paper`."""

import sys

from hrt.perf.paper.command import main

sys.exit(main())
