# %% [markdown]
"""
# A PINN of Burgers' equation, compressed

What you learn: train a physics-informed network on `u_t + u u_x = nu u_xx` with torch alone, compress it under a bound
on u and on its derivatives, and see whether the small network still solves the equation.

It takes half a minute on one core; `python pinn_burgers.py --quick` takes seconds and hardly trains. It prints the
size, the error of u and of each derivative on new points, and the residual before and after. It writes `burgers.hrt`
and `burgers.png`.
"""

# %%
import sys
from itertools import pairwise
from math import pi

import matplotlib.pyplot as plt
import torch
from torch import nn

import hrt

STEPS, TOL, NU = (10 if "--quick" in sys.argv else 600), 1e-3, 0.1 / pi
torch.manual_seed(0)
layers = [m for a, b in pairwise([2, 64, 64, 64, 1]) for m in (nn.Linear(a, b), nn.Tanh())]
net = nn.Sequential(*layers[:-1])


def points(count):  # x in [-1, 1], t in [0, 1]
    return torch.rand(count, 2) * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.0])


def with_derivatives(x):
    u = net(x.requires_grad_())
    u_x, u_t = torch.autograd.grad(u.sum(), x, create_graph=True)[0].split(1, 1)
    return u, u_x, u_t, torch.autograd.grad(u_x.sum(), x, create_graph=True)[0][:, :1]


# %% [markdown]
# Train. The loss is the mean square of the residual inside, and of the error at the start and at both ends.

# %%
inside, start, ends = points(2000), points(200), points(200)
start[:, 1], ends[:, 0] = 0, ends[:, 0].sign()
edge, known = torch.cat([start, ends]), torch.cat([-torch.sin(pi * start[:, :1]), torch.zeros(200, 1)])
optimizer = torch.optim.LBFGS(net.parameters(), max_iter=STEPS, history_size=50, line_search_fn="strong_wolfe")


def loss():
    optimizer.zero_grad()
    u, u_x, u_t, u_xx = with_derivatives(inside)
    value = (u_t + u * u_x - NU * u_xx).square().mean() + 10 * (net(edge) - known).square().mean()
    value.backward()
    return value


optimizer.step(loss)
print(f"loss {loss():.1e} after {STEPS} steps")
# %% [markdown]
# Compress. The relative error of u, u_x, u_t and u_xx is each at most 1e-3: a 99 % limit, on points held out.

# %%
names, new = ["d0", "d1", "d0d0"], points(5000)
model = hrt.compress(net, inputs=hrt.Box([-1, 0], [1, 1]), tol=TOL, derivatives=names)
model.save("burgers.hrt")
print(f"{model.nbytes:,} bytes, {model.compression_ratio:.1f} times smaller than dense float32")
exact, small = [e.detach() for e in with_derivatives(new)], model.predict(new.detach(), derivatives=names)
for name, y, e in zip(["u", "u_x", "u_t", "u_xx"], small, exact, strict=True):
    print(f"error of {name}: {(y - e).norm() / e.norm():.1e}, asked for {TOL:g}")
for name, (u, u_x, u_t, u_xx) in {"dense": exact, "compressed": small}.items():
    print(f"residual of the {name} network: {(u_t + u * u_x - NU * u_xx).square().mean().sqrt():.1e} (rms)")

(x, t), (figure, axes) = new.detach().T, plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
fields = {"u": exact[0], "compressed u": small[0], "difference": small[0] - exact[0]}
for ax, (title, values) in zip(axes, fields.items(), strict=True):
    figure.colorbar(ax.tripcolor(t, x, values[:, 0], cmap="RdBu_r"), ax=ax)
    ax.set(title=title, xlabel="t", ylabel="x")
figure.savefig("burgers.png")
