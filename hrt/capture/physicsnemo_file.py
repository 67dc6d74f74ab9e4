"""A .mdlus file of PhysicsNeMo alone: its network, built by the physicsnemo that is installed."""

import importlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from torch import nn

from hrt.capture.checkpoint_files import archive_member, read_checkpoint
from hrt.capture.describe_weights import described
from hrt.capture.torch_export import quiet
from hrt.errors import InputError, reason
from hrt.support.foreign_files import Foreign

PACKAGES = {"physicsnemo": "physicsnemo", "modulus": "physicsnemo"}  # what it was called, and is
MODULE = re.compile(r"\w+(\.\w+)*", re.ASCII)


def read_physicsnemo(path: Path) -> nn.Module:
    """The network in a .mdlus file. The file names classes and their arguments: only physicsnemo's own are made.

    Raises InputError where physicsnemo is not installed, or the file names another package's class.
    """
    foreign, checkpoint = Foreign.of(path), read_checkpoint(path)
    try:
        arguments = json.loads(archive_member(path, "args.json"))
        classes = [arguments, *(v for v in arguments.values() if isinstance(v, dict) and "__name__" in v)]
        names = [(str(made["__module__"]), str(made["__name__"])) for made in classes]
    except Exception as error:  # anything may stand there
        raise InputError(f"{path} does not say which network it is: {reason(error)}.") from error
    what = f"{path} is a PhysicsNeMo checkpoint of a {names[0][1]} ({names[0][0]})."
    strangers = [f"{module}.{name}" for module, name in names if module.partition(".")[0] not in PACKAGES]
    if strangers:
        raise InputError(f"{what} {strangers[0]} is no class of physicsnemo. {foreign.remedy(str(path))}")
    spec = importlib.util.find_spec("physicsnemo")
    if spec is None or spec.origin is None:  # no origin: a folder of that name
        raise InputError(
            f"{what} {described(checkpoint)} Its network can be built where physicsnemo is installed "
            f"(pip install nvidia-physicsnemo). {foreign.remedy(str(path))}"
        )
    try:
        with quiet():
            base = importlib.import_module("physicsnemo").Module
            for module, name in names:
                _check_class(base, module, name)
            return base.from_checkpoint(str(path))
    except Exception as error:  # another package's code: anything may happen
        raise InputError(f"{what} physicsnemo could not build it: {reason(error)}.") from error


def _check_class(base: Any, module: str, name: str) -> None:
    package, _, rest = module.partition(".")
    if not MODULE.fullmatch(module):
        raise ValueError(f"{module} is no module")
    made = getattr(importlib.import_module(f"{PACKAGES[package]}.{rest}".rstrip(".")), name)
    if not (isinstance(made, type) and issubclass(made, base)):
        raise ValueError(f"{module}.{name} is no physicsnemo.Module")
