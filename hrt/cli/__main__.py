"""`python -m hrt.cli`, the same as the command `hrt`."""

import sys

from hrt.cli.main import main

sys.exit(main())
