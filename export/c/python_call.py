"""What a library needs to answer Python without the interpreter's headers: addresses of its functions and NumPy's.

The structures that `session.c` reads are those which every compiled extension has built in; `is_usual` says whether
this interpreter is one of theirs.
"""

import ctypes
import sys
import sysconfig
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

NEW_ARRAY = 93  # the place of PyArray_New in NumPy's table, the same in every version
TAKES_ONE = 8  # METH_O
FLOAT32 = np.dtype(np.float32)
FUNCTIONS = {
    "new_tuple": "PyTuple_New",
    "set_item": "PyTuple_SetItem",
    "get_item": "PyTuple_GetItem",
    "tuple_size": "PyTuple_Size",
    "keep": "Py_IncRef",
    "drop": "Py_DecRef",
    "let_others_run": "PyEval_SaveThread",
    "take_over": "PyEval_RestoreThread",
    "forget_error": "PyErr_Clear",
}
TABLE = ("array_type", "tuple_type", "float32", "none", "new_array", *FUNCTIONS)  # as in session.c

_definitions: list[Any] = []  # of builtin functions: the interpreter reads them as long as it runs


class Definition(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


def is_usual() -> bool:
    """Whether objects begin with a count of references and a type, and one thread at a time runs."""
    usual = sys.implementation.name == "cpython" and object.__basicsize__ == 2 * ctypes.sizeof(ctypes.c_void_p)
    return usual and not sysconfig.get_config_var("Py_GIL_DISABLED")


@cache
def table() -> Any:
    """The addresses, in the order of `python` in session.c."""
    api = ctypes.pythonapi
    addresses = {
        "array_type": id(np.ndarray),
        "tuple_type": id(tuple),
        "float32": id(FLOAT32),
        "none": id(None),
        "new_array": _numpy_functions()[NEW_ARRAY],
        **{name: ctypes.cast(getattr(api, symbol), ctypes.c_void_p).value for name, symbol in FUNCTIONS.items()},
    }
    return (ctypes.c_void_p * len(TABLE))(*(addresses[name] for name in TABLE))


def builtin(function: Any, state: np.ndarray) -> Any:
    """A builtin function of one argument, made of a C function that gets `state`, an array, and that argument."""
    definition = Definition(b"answer", ctypes.cast(function, ctypes.c_void_p), TAKES_ONE, None)
    _definitions.append(definition)
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
    return make(("PyCFunction_NewEx", ctypes.pythonapi))(ctypes.addressof(definition), state, None)


def _numpy_functions() -> Any:
    """NumPy's table of functions for extensions."""
    core = "numpy._core" if int(np.__version__.partition(".")[0]) >= 2 else "numpy.core"
    capsule = import_module(f"{core}._multiarray_umath")._ARRAY_API
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
    address = pointer(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, None)
    return ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))
