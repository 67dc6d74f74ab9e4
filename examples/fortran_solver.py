"""A solver in Fortran that calls a network: heat conduction whose conductivity was learned.

What you learn: `hrt.export_c(..., fortran=True)` writes a module beside the C file. A Fortran solver calls the network
through it, for all of its cells at once, without Python.

It takes half a minute; `--quick` takes seconds and hardly trains. It needs gfortran and a C compiler ($CC, or cc), and
says so where one is missing. It prints the network's error, and from the Fortran program how far the temperatures by
the network are from those by the formula. It writes k.c, k.h, k.f90, solver.f90 and the program, solver.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import hrt

STEPS, TOL = (300 if "--quick" in sys.argv else 2000), 1e-3
SOLVER = """
program solver  ! T_t = (k(T, x) T_x)_x on [0, 1]: T = 1 at the left, 0 at the right and at first
  use, intrinsic :: iso_c_binding
  use k_module
  implicit none
  real(8) :: learned(0:50), exact(0:50)
  call run(.true., learned)
  call run(.false., exact)
  print '(a, es8.1)', 'relative difference of the temperatures: ', norm2(learned - exact) / norm2(exact)
contains
  subroutine run(by_network, t)
    logical, intent(in) :: by_network
    real(8), intent(out) :: t(0:50)
    real(8) :: flux(50), h
    real(c_float) :: rows(2, 50), k_of(1, 50)
    integer(c_int8_t), allocatable, target :: memory(:)
    integer :: i, step
    allocate(memory(k_workspace() + 63))
    h = 1 / 50d0
    t = 0
    t(0) = 1
    do step = 1, 2000  ! of 5e-5
      rows(1, :) = real((t(0:49) + t(1:50)) / 2, c_float)
      rows(2, :) = [(real((i - 0.5d0) * h, c_float), i = 1, 50)]
      k_of(1, :) = (1 + 2 * rows(1, :)**2) * exp(-rows(2, :))
      if (by_network) then
        if (k(rows, k_of, 50_c_size_t, k_aligned(memory)) /= 0) error stop 'the network was called wrongly'
      end if
      flux = k_of(1, :) * (t(1:50) - t(0:49)) / h
      t(1:49) = t(1:49) + 5d-5 * (flux(2:50) - flux(1:49)) / h
    end do
  end subroutine
end program
"""

cc, fortran = shutil.which(os.environ.get("CC", "cc")), shutil.which("gfortran")
if not (cc and fortran):
    sys.exit(f"No {'gfortran' if cc else 'C compiler'}: install it (on Debian and Ubuntu: apt install gfortran gcc).")
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(STEPS):
    temperature, x = torch.rand(2, 500, 1)
    optimizer.zero_grad()
    known = (1 + 2 * temperature**2) * torch.exp(-x)
    (net(torch.cat([temperature, x], 1)) - known).square().mean().backward()
    optimizer.step()

model = hrt.compress(net, inputs=hrt.Box([0, 0], [1, 1]), tol=TOL)
hrt.export_c(model, "k.c", fortran=True)
new = torch.rand(5000, 2)
error = (model.predict(new) - net(new).detach()).norm() / net(new).norm()
print(f"{model.nbytes:,} bytes, error {error:.1e}, asked for {TOL:g}", flush=True)
Path("solver.f90").write_text(SOLVER)
subprocess.run([cc, "-O3", "-march=native", "-c", "k.c"], check=True)
subprocess.run([fortran, "-O2", "k.f90", "solver.f90", "k.o", "-o", "solver"], check=True)
sys.exit(subprocess.run(["./solver"]).returncode)
