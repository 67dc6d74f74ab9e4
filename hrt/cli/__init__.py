"""The command line: words in, one line of error out.

The top of hrt: it may import everything, late, so that `hrt --help` needs no torch.
"""

INTERRUPTED = 130  # exit status after Ctrl-C
INTERRUPTION = "hrt: interrupted; nothing was written\n"
