"""`net.f90`: a Fortran module with explicit interfaces of the generated functions (Fortran 2003)."""

from collections.abc import Sequence
from itertools import repeat
from textwrap import wrap

from hrt import __version__
from hrt.export.c.companions.header import Promise
from hrt.export.c.program_text import Function

MODULE = """\
! {name}: interfaces of {stem}.c for Fortran, by hrt {version}. Do not edit.
!
!   cc -O3 -march=native -c {stem}.c
!   gfortran -O2 {stem}.f90 program.f90 {stem}.o
!
!   integer(c_int8_t), target :: memory({name}_workspace() + 63) ! one per thread
{call}
!
! Status 0; 1 a pointer is null; 2 workspace misaligned; 3 too many rows; 4 of the self-test: answers differ.
{promise}module {name}_module
  use, intrinsic :: iso_c_binding, only: {real}, c_int, c_int8_t, c_intptr_t, c_loc, c_ptr, c_size_t
  implicit none
  private
  public :: {public}
  integer, parameter, public :: {name}_real = {real}

  interface
    ! Bytes of the workspace.
    function {name}_workspace() &
        bind(c, name="{name}_workspace") result(bytes)
      import :: c_size_t
      integer(c_size_t) :: bytes
    end function {name}_workspace
{functions}
    ! 0 where embedded rows give the embedded answers on this machine.
    function {name}_self_test(workspace) &
        bind(c, name="{name}_self_test") result(status)
      import :: c_int, c_ptr
      type(c_ptr), value :: workspace
      integer(c_int) :: status
    end function {name}_self_test
  end interface

contains

  ! Where the workspace begins in memory of 63 bytes more than it needs: at a multiple of 64.
  function {name}_aligned(memory) result(workspace)
    integer(c_int8_t), intent(in), target, contiguous :: memory(:)
    type(c_ptr) :: workspace
    integer(c_intptr_t) :: address
    workspace = c_loc(memory(1))
    address = transfer(workspace, address)
    workspace = c_loc(memory(1 + modulo(-address, 64_c_intptr_t)))
  end function {name}_aligned

end module {name}_module
"""
FUNCTION = """
    ! {about}
    function {name}( &
{arguments}) &
        bind(c, name="{name}") result(status)
      import :: {real}, c_int, c_ptr, c_size_t
      integer(c_size_t), value :: rows
{declarations}
      type(c_ptr), value :: workspace
      integer(c_int) :: status
    end function {name}
"""
ABOUT = ("Outputs of so many rows.", "Outputs, then derivatives.")
INITIALISE = """
    ! Once for every workspace, unless the C file was compiled with {upper}_INCBIN: where the numbers of {stem}.bin lie,
    ! at a multiple of 64, and how many bytes there are. 5: these are not the numbers.
    function {name}_initialise(workspace, numbers, bytes) &
        bind(c, name="{name}_initialise") result(status)
      import :: c_int, c_ptr, c_size_t
      type(c_ptr), value :: workspace, numbers
      integer(c_size_t), value :: bytes
      integer(c_int) :: status
    end function {name}_initialise
"""
WIDTH = 100  # characters of a line of arguments
RANK = 15  # dimensions of an array, at most


def fortran_text(functions: Sequence[Function], real: str, promise: Promise, stem: str, is_file: bool = False) -> str:
    """The module for the functions of a generated file `stem`.c that computes in `real`. is_file: its numbers are."""
    name, kind = functions[0].name, f"c_{real}"
    public = [*(f.name for f in functions), f"{name}_workspace", f"{name}_self_test", f"{name}_aligned"]
    initialise = INITIALISE.format(name=name, upper=name.upper(), stem=_plain(stem)) if is_file else ""
    public += [f"{name}_initialise"] if is_file else []
    arguments = ", ".join(functions[0].inputs + functions[0].outputs)
    call = f"status = {name}({arguments}, rows, {name}_aligned(memory))"
    return MODULE.format(
        name=name,
        version=__version__,
        stem=_plain(stem),
        call="\n".join(f"!   {line}" for line in wrap(call, WIDTH, subsequent_indent="    ")),
        promise="".join(f"! {_plain(line)}\n" for line in promise.lines),
        public=", &\n    ".join(public),
        real=kind,
        functions="".join(map(_interface, functions, repeat(kind), ABOUT)) + initialise,
    )


def dimensions(shape: Sequence[int], rows: str) -> str:
    """Of an array whose memory is that of (rows, *shape) in C: Fortran's first axis is the fastest."""
    axes = [*map(str, reversed(shape)), rows]
    return ", ".join(axes) if len(axes) <= RANK else "*"


def _interface(f: Function, kind: str, about: str) -> str:
    arguments = wrap(", ".join([*f.inputs, *f.outputs, "rows, workspace"]), WIDTH)
    declarations = [
        f"      real({kind}), intent({'in' if p in f.inputs else 'inout'}) :: {p}({dimensions(shape, 'rows')})"
        f" ! {_plain(value)}"
        for p, value, shape in f.arguments
    ]
    return FUNCTION.format(
        name=f.name,
        real=kind,
        about=about,
        arguments=" &\n".join(f"        {line}" for line in arguments),
        declarations="\n".join(declarations),
    )


def _plain(text: str) -> str:
    """`text` as a comment of one short line of ASCII."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:WIDTH]
