# %% [markdown]
"""
# An operator of 16,384 x 16,384, never formed

What you learn: compress an integral operator tile by tile, put the tiles together as one hierarchical matrix, apply it,
and solve with it in SciPy. The dense matrix, 1.07 GB in float32, never exists. If every tile is within `tol` of its
norm, so is the whole matrix.

It takes half a minute on one core; `python large_operator.py --quick` takes seconds, on 1,024 points. It prints the
size, the error of the matrix, the time of a product, and how well the solution solves
`u(x) - integral log|x - y| u(y) dy = cos(20 x)`. It writes `operator.png`.
"""

# %%
import sys
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, gmres

import hrt

POINTS, TILE, TOL = (1024, 512, 1e-4) if "--quick" in sys.argv else (16_384, 2048, 1e-4)
h = 1 / POINTS
x = h * (torch.arange(POINTS).double() + 0.5)


# %% [markdown]
# Entries: `-h log|x_i - x_j|`, and on the diagonal the integral over the cell.
# The matrix is symmetric: a tile below the diagonal gives its mirror image too.


# %%
def entries(rows, columns):
    distance = (x[rows, None] - x[columns]).abs()
    return -h * torch.where(distance > 0, distance, h / 2 / np.e).log()


begin, leaves, norm, error = time.perf_counter(), [], 0.0, 0.0
for i, j in (TILE * np.argwhere(np.tri(POINTS // TILE))).tolist():
    w = entries(slice(i, i + TILE), slice(j, j + TILE))
    tile, tiles = hrt.compress_matrix(w, tol=TOL, ordering="natural"), 1 if i == j else 2
    norm, error = norm + tiles * w.norm() ** 2, error + tiles * (tile.error(w) * w.norm()) ** 2
    for leaf in tile.leaves:
        moved = hrt.Leaf(leaf.row + i, leaf.rows, leaf.col + j, leaf.cols, leaf.dense, leaf.u, leaf.vt)
        leaves += [moved, moved.transposed][:tiles]
matrix, dense = hrt.HMatrix((POINTS, POINTS), tuple(leaves)), 4 * POINTS**2
print(f"{matrix.nbytes:,} bytes, {dense / matrix.nbytes:.0f} times smaller, in {time.perf_counter() - begin:.0f} s")
print(f"relative error of the matrix: {(error / norm).sqrt():.1e}, asked for {TOL:g}")

# %% [markdown]
# Solve the equation by SciPy's GMRES, and insert the solution into rows of the exact equation, computed anew.

# %%
operator, f = matrix.to_scipy(), np.cos(20 * x.numpy())
u, status = gmres(LinearOperator(operator.shape, lambda v: v + operator @ v, dtype=float), f, rtol=1e-8)
begin = time.perf_counter()
operator @ u
print(f"a product takes {1e3 * (time.perf_counter() - begin):.1f} ms")
some = np.random.default_rng(0).choice(POINTS, 100, replace=False)
left = u[some] + entries(some, slice(None)).numpy() @ u - f[some]
print(f"GMRES {'converged' if status == 0 else 'DID NOT CONVERGE'}; ", end="")
print(f"the exact equation is off by {np.linalg.norm(left) / np.linalg.norm(f[some]):.1e} in these rows")
plt.plot(x, u)
plt.gca().set(xlabel="x", ylabel="u", title=f"{POINTS:,} unknowns")
plt.savefig("operator.png")
