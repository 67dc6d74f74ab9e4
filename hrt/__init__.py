"""hrt: deploy the networks that scientists train, small and fast, with an error bound that holds.

>>> import hrt, torch
>>> net = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
>>> small = hrt.compress(net, inputs=torch.rand(500, 2), tol=1e-2, progress=False)
>>> tuple(small.predict(torch.rand(5, 2)).shape)
(5, 1)

`small.save("net.hrt")` writes it, `hrt.load("net.hrt")` reads it. The public names are those of `__init__.pyi`: each is
imported on first use, so that `import hrt` and `hrt --help` wait for nothing.
"""

from importlib import import_module
from typing import Any

import lazy_loader

_import_public_name, _, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.2.0"  # the one place: pyproject.toml reads it, tests/test_release.py compares the other files


def __getattr__(name: str) -> Any:
    """A public name, or a room such as `hrt.program`, on first use."""
    if name in __all__:
        value = globals()[name] = _import_public_name(name)
        return value
    if not name.startswith("_"):
        try:
            return import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    from difflib import get_close_matches

    near = get_close_matches(name, __all__, n=1)
    remedy = f"Did you mean hrt.{near[0]}?" if near else "dir(hrt) lists the public names."
    raise AttributeError(f"Found hrt.{name}, which does not exist. {remedy}", name=name)


def __dir__() -> list[str]:
    """The public names, and what has been imported."""
    return sorted({*__all__, *globals()})
