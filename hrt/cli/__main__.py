"""`python -m hrt.cli.main`, the same as the command `hrt`."""

import sys

from hrt.cli.main import main

sys.exit(main())
