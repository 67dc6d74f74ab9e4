"""What a part of the study found, and what that says of the claims that it judges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hrt.errors import InputError

AS_GOOD = 1.1  # times: errors, ratios and gaps up to this are as good
FLAT = 0.01  # of an accuracy, 1 - relative error: a change that is hardly one


@dataclass(frozen=True)
class Judgement:
    """Of one claim, and the figures in short that it rests on."""

    verdict: str
    figures: str


@dataclass(frozen=True)
class Finding:
    """What a part measured. how: on what, how often.  lines: the figures.  judged: claims by number, the first is the
    part's own; those whose verdict does not hang on this run have figures alone.  remark: what they do not say.
    """

    how: str
    lines: Sequence[str]
    judged: Mapping[str, Judgement]
    remark: str = ""

    @property
    def verdict(self) -> str:
        return next(iter(self.judged.values())).verdict


def verdict(yes: int, of: int) -> str:
    """In words, of `of` comparisons `yes` of which support the claim."""
    if not of:
        raise InputError("Nothing was measured that the claim could be compared with.")
    return "Agrees" if yes == of else "Does not agree" if yes == 0 else "Agrees in part"


def judgement(comparisons: Sequence[bool], figures: str) -> Judgement:
    """Of comparisons that support the claim or do not."""
    return Judgement(
        verdict(sum(comparisons), len(comparisons)), f"{sum(comparisons)} of {len(comparisons)}: {figures}"
    )
