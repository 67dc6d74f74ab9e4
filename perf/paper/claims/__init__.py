"""What the paper claims, and what our own figures say of it."""

from hrt.perf.paper.claims.finding import AS_GOOD, FLAT, Finding, Judgement, judgement, verdict
from hrt.perf.paper.claims.measured import (
    comparison,
    complexity,
    compression,
    heat_maps,
    matched,
    propagation,
    speed,
    train_and_test,
)
from hrt.perf.paper.claims.table import CLAIMS, Claim
from hrt.perf.paper.claims.trained import kernel, preserved, rates, regulariser, training

__all__ = [
    "AS_GOOD",
    "CLAIMS",
    "FLAT",
    "Claim",
    "Finding",
    "Judgement",
    "comparison",
    "complexity",
    "compression",
    "heat_maps",
    "judgement",
    "kernel",
    "matched",
    "preserved",
    "propagation",
    "rates",
    "regulariser",
    "speed",
    "train_and_test",
    "training",
    "verdict",
]
