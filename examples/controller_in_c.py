"""A controller in C: a network that balances a pendulum at 1 kHz.

What you learn: a compressed network becomes one C file that allocates nothing; a control loop calls it every
millisecond. The network has learned a known control law.

It takes half a minute; `--quick` takes seconds and balances for half a second. It needs a C compiler ($CC, or cc). It
prints the network's error, and from the C program the last angle, the slowest call and how many ticks came late. It
writes policy.c, policy.h, loop.c and the program, loop.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import hrt

(STEPS, TICKS), TOL = (300, 500) if "--quick" in sys.argv else (1500, 5000), 1e-2
LOOP = r"""
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "policy.h"
static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}
int main(int count, char **words) {
    int ticks = atoi(words[count - 1]), late = 0;
    void *workspace = aligned_alloc(64, (policy_workspace() + 63) / 64 * 64);
    if (!workspace || policy_self_test(workspace) != 0) return printf("the self-test failed\n"), 1;
    double angle = 0.3, speed = 0, slowest = 0, due = seconds();
    for (int tick = 0; tick < ticks; ++tick) {
        float state[2] = {(float)angle, (float)speed}, torque;
        double begin = seconds();
        policy(state, &torque, 1, workspace);
        slowest = fmax(slowest, seconds() - begin);
        speed += 1e-3 * (9.81 * sin(angle) + torque); /* the plant, a step of 1 ms */
        angle += 1e-3 * speed;
        double left = (due += 1e-3) - seconds();
        late += left < 0;
        if (left > 0) nanosleep(&(struct timespec){0, (long)(1e9 * left)}, NULL);
    }
    printf("angle %.5f rad after %d ms, slowest call %.1f us, %d late ticks\n", angle, ticks, 1e6 * slowest, late);
}
"""


def controller(state):
    """The torque (rows, 1) of the angle and its speed (rows, 2), at most 8 in size."""
    angle, speed = state.split(1, 1)
    return 8 * torch.tanh((-9.81 * torch.sin(angle) - 20 * angle - 9 * speed) / 8)


if (compiler := shutil.which(os.environ.get("CC", "cc"))) is None:
    sys.exit("No C compiler: install gcc or clang, or set CC; then: cc -O3 -march=native loop.c policy.c -lm -o loop")
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(STEPS):
    states = (torch.rand(500, 2) - 0.5) * torch.tensor([2.0, 6.0])
    optimizer.zero_grad()
    (net(states) - controller(states)).square().mean().backward()
    optimizer.step()

model = hrt.compress(net, inputs=hrt.Box([-1, -3], [1, 3]), tol=TOL)
hrt.export_c(model, "policy.c")
new = (torch.rand(5000, 2) - 0.5) * torch.tensor([2.0, 6.0])
error = (model.predict(new) - net(new).detach()).norm() / net(new).norm()
print(f"{model.nbytes:,} bytes, error {error:.1e}, asked for {TOL:g}")
Path("loop.c").write_text(LOOP)
subprocess.run([compiler, "-O3", "-march=native", "loop.c", "policy.c", "-lm", "-o", "loop"], check=True)
sys.exit(subprocess.run(["./loop", str(TICKS)]).returncode)
