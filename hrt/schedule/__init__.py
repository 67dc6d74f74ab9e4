"""A program flattened into waves of tiles of steps, and what these cost on a device.

Knows nothing of sessions; kernels execute what is built here.
"""

from hrt.schedule.build_schedule import build_schedule
from hrt.schedule.choose_layout import choose_schedule
from hrt.schedule.launch_plan import Plan, make_plan
from hrt.schedule.precision import default_precision, fastest_within, precision_limits
from hrt.schedule.roofline import CHIPS, Chip, dense_work, schedule_floor, work_of
from hrt.schedule.run_reference import execute
from hrt.schedule.schedule import Schedule

__all__ = [
    "CHIPS",
    "Chip",
    "Plan",
    "Schedule",
    "build_schedule",
    "choose_schedule",
    "default_precision",
    "dense_work",
    "execute",
    "fastest_within",
    "make_plan",
    "precision_limits",
    "schedule_floor",
    "work_of",
]
