"""A network as data: a sorted list of nodes over a closed table of ops.

Knows matrices; knows nothing of where networks come from or how they are compressed.
"""

from hrt.program.check_program import check_program
from hrt.program.dense_view import DenseView, compressed_weights, stored, to_float64, written_out
from hrt.program.generated import Recipe
from hrt.program.names import unique_name
from hrt.program.op_table import TABLE, Op
from hrt.program.parallel_linears import joined
from hrt.program.program import Constant, Node, Program, Value, program_nbytes

__all__ = [
    "TABLE",
    "Constant",
    "DenseView",
    "Node",
    "Op",
    "Program",
    "Recipe",
    "Value",
    "check_program",
    "compressed_weights",
    "joined",
    "program_nbytes",
    "stored",
    "to_float64",
    "unique_name",
    "written_out",
]
