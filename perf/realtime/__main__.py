"""`python -m hrt.perf.realtime NET.hrt`, and `python -m hrt.perf.realtime serving NET.hrt`."""

import sys

from hrt.perf.realtime.command import main

sys.exit(main())
