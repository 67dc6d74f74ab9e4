"""Arrays, files, processes, progress bars and devices: what every room needs and no network knows of.

Knows nothing of matrices, programs or models. What needs no torch is handed on here.
"""

from hrt.support.atomic_files import check_writable, replacing, usable, warn_of_suffix
from hrt.support.progress import Advance, part, silent, track

__all__ = ["Advance", "check_writable", "part", "replacing", "silent", "track", "usable", "warn_of_suffix"]
