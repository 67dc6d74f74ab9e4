"""Where the command `hrt` begins: Ctrl-C is one line and status 130 from here on, also while modules are imported.

Imports next to nothing itself, so that little time passes before that holds.
"""

import os
import signal
import sys
from types import FrameType

from hrt.cli import INTERRUPTED, INTERRUPTION


def main() -> int:
    """Run the command line, and return its exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a shell or a caller wants it otherwise
        signal.signal(signal.SIGINT, _interrupted)
    try:
        from hrt.cli.main import main as run

        status = run()
    except KeyboardInterrupt:  # between two lines of ours
        sys.stderr.write(INTERRUPTION)
        status = INTERRUPTED
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done, and its status known
    return status


def _interrupted(_: int, frame: FrameType | None) -> None:
    """Ctrl-C. Modules in the midst of their import, C++ ones above all, turn an exception into errors of their own or
    end the process; nothing is written then, and so it ends at once.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, INTERRUPTION.encode())
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt
