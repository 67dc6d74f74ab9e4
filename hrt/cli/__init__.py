"""The command line: words in, one line of error out.

The top of hrt: it may import everything, late, so that `hrt --help` needs no torch.
"""
