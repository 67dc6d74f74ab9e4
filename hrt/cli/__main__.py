"""`python -m hrt.cli`, the same as the command `hrt`."""

import sys

from hrt.cli.entry import main

sys.exit(main())
