"""net.f90: compiled under strict Fortran 2008, its functions give what predict gives, axes reversed."""

import re
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import hrt
from hrt.export.c import exporter
from hrt.export.c.companions.fortran import dimensions

from compiled import compiler

PROGRAM = """
program main
  use net_module
  use, intrinsic :: iso_c_binding
  implicit none
  real(net_real) :: a(3, 2, 4), b(5, 4)
  real(net_real), dimension(6, 2, 4) :: y, dy
  real(net_real), dimension(4) :: s, ds
  integer(c_int8_t), allocatable, target :: memory(:)
  integer :: shift, status
  open (10, file="x", access="stream", form="unformatted")
  read (10) a, b
  allocate (memory(net_workspace() + 70))
  open (11, file="y", access="stream", form="unformatted")
  do shift = 1, 8 ! wherever memory begins
    status = net(a, b, y, s, 4_c_size_t, net_aligned(memory(shift:)))
    if (status /= 0) error stop 1
    write (11) y, s
  end do
  status = net_derivatives(a, b, y, s, dy, ds, 4_c_size_t, net_aligned(memory))
  if (status /= 0) error stop 2
  write (11) y, s, dy, ds
  if (net_self_test(net_aligned(memory)) /= 0) error stop 3
  if (net_self_test(c_null_ptr) /= 1) error stop 4
end program main
"""


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.field, self.point = torch.nn.Linear(3, 6), torch.nn.Linear(5, 6)

    def forward(self, a, b):
        y = torch.tanh(self.field(a)) * self.point(b)[:, None]
        return y, y[:, 0, 0]


def built_and_run(folder: Path) -> str:
    """Compile net.c, net.f90 and main.f90; what the program prints. Skips without compilers."""
    strict = ("-std=f2008", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fcheck=all")
    for command in (
        (compiler(), "-O1", "-c", "net.c"),
        (compiler("gfortran"), *strict, "net.f90", "main.f90", "net.o", "-o", "main"),
        ("./main",),
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:3000]
    return done.stdout


@pytest.mark.parametrize(
    "precision, dtype", [("float32", np.float32), pytest.param("float64", np.float64, marks=pytest.mark.slow)]
)
def test_fortran_gives_what_predict_gives(tmp_path: Path, precision: str, dtype: type) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(64, 2, 3), torch.randn(64, 5)
    model = hrt.compress(Two(), inputs=inputs, tol=1e-2, progress=False)
    hrt.export_c(model, tmp_path / "net.c", fortran=True, derivatives=["d0"], precision=precision)
    (tmp_path / "main.f90").write_text(PROGRAM)
    rows = [v[:4].numpy().astype(dtype) for v in inputs]
    (tmp_path / "x").write_bytes(b"".join(v.tobytes() for v in rows))
    built_and_run(tmp_path)
    numbers = np.frombuffer((tmp_path / "y").read_bytes(), dtype)
    example = tuple(torch.from_numpy(v).float() for v in rows)
    shown, derived = model.predict(example), model.predict(example, derivatives=["d0"])
    expected = np.concatenate([np.ravel(v) for v in (*shown * 8, *derived[0], *derived[1])])
    assert numbers.shape == expected.shape
    assert np.linalg.norm(numbers - expected) <= 1e-5 * np.linalg.norm(expected)


FROM_FILE = """
program main
  use net_module
  use, intrinsic :: iso_c_binding
  implicit none
  real(net_real) :: x(3, 2), y(2, 2)
  integer(c_int8_t), allocatable, target :: memory(:), numbers(:)
  integer(c_int8_t), pointer :: there(:)
  type(c_ptr) :: workspace, where
  integer(c_size_t) :: bytes
  inquire (file="net.bin", size=bytes)
  allocate (memory(net_workspace() + 63), numbers(bytes + 63))
  workspace = net_aligned(memory)
  where = net_aligned(numbers)
  call c_f_pointer(where, there, [bytes])
  open (10, file="net.bin", access="stream", form="unformatted")
  read (10) there
  x = reshape([1, 2, 3, 4, 5, 6] / 8.0_net_real, shape(x))
  if (net(x, y, 2_c_size_t, workspace) /= 5) error stop 1
  if (net_initialise(workspace, where, bytes - 1) /= 5) error stop 2
  if (net_initialise(workspace, where, bytes) /= 0) error stop 3
  if (net(x, y, 2_c_size_t, workspace) /= 0) error stop 4
  print *, y
end program main
"""


def test_numbers_that_are_a_file_are_given_from_fortran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = hrt.compress(torch.nn.Linear(3, 2), progress=False)
    monkeypatch.setattr(exporter, "generate", partial(exporter.generate, in_text=-1))
    hrt.export_c(model, tmp_path / "net.c", fortran=True)
    (tmp_path / "main.f90").write_text(FROM_FILE)
    printed = built_and_run(tmp_path)
    expected = model.predict((torch.arange(6).reshape(2, 3) + 1.0) / 8)
    assert np.allclose([float(v) for v in printed.split()], expected.ravel(), rtol=1e-5)


def test_lines_and_names_are_within_fortrans_limits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    outputs = torch.nn.ModuleList(torch.nn.Linear(2, 1) for _ in range(30))

    class Many(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = outputs

        def forward(self, x):
            return tuple(part(x) for part in self.parts)

    model = hrt.compress(Many(), progress=False)
    hrt.export_c(model, tmp_path / "net.c", name="n" * 51, fortran=True, derivatives=["d0"])
    text = (tmp_path / "net.f90").read_text()
    assert max(map(len, text.splitlines())) <= 132
    assert max(map(len, re.findall(r"\w+", text))) <= 63


def test_axes_are_reversed_and_no_more_than_fortran_has() -> None:
    assert dimensions((2, 3), "rows") == "3, 2, rows"
    assert dimensions((), "rows") == "rows"
    assert dimensions((1,) * 15, "rows") == "*"
