"""`python -m hrt.perf.realtime NET.hrt`."""

import sys

from hrt.perf.realtime.command import main

sys.exit(main())
