"""What to write in the place of operators that are not captured."""

from collections.abc import Iterable
from difflib import get_close_matches

FACTORS = (
    "it factors a matrix that depends on the input; write small ones out in sums of products, or make the factor of a "
    "constant one in __init__"
)
REMEDIES = {  # for operators outside the table, by how their names begin
    **{name: FACTORS for name in ("linalg", "det", "logdet", "slogdet", "cholesky", "inverse", "lu_", "svd", "qr")},
    "grid_sampler": "it reads at places that depend on the input; read at fixed ones (F.interpolate, an index)",
    **{name: "it orders values; amax, amin and topk of few are captured" for name in ("sort", "argsort", "kthvalue")},
    **{name: "the shape of its result depends on the values; write it as a mask" for name in ("unique", "nonzero")},
}


def remedy(name: str, known: Iterable[str]) -> str:
    """What to write in the place of an operator, or which captured ones have a name like it."""
    if advice := next((text for start, text in REMEDIES.items() if name.strip("_").startswith(start)), ""):
        return f": {advice}"
    alike = get_close_matches(name.strip("_"), list(known), n=3)
    return f" (near to it: {', '.join(alike)})" if alike else ""
