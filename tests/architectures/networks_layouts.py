"""Networks that hold the batch elsewhere than in front, and stacks of matrices."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.checked import Family
from zoo_pinns import mlp

LAYOUTS = Family("layouts")


class Recurrent(nn.Module):
    """A recurrent layer and a readout of its last state."""

    def __init__(self, kind, batch_first: bool = True, **options):
        super().__init__()
        self.rnn = kind(4, 16, batch_first=batch_first, **options)
        self.first, self.out = batch_first, nn.Linear(16 * (2 if self.rnn.bidirectional else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x if self.first else x.transpose(0, 1))
        return self.out(y[:, -1] if self.first else y[-1])


@LAYOUTS.add([(4, 4)])
def lstm() -> nn.Module:
    return Recurrent(nn.LSTM)


@LAYOUTS.add([(3, 4)])
def lstm_two_layers_sequence_first() -> nn.Module:
    return Recurrent(nn.LSTM, batch_first=False, num_layers=2)


@LAYOUTS.add([(3, 4)])
def lstm_bidirectional() -> nn.Module:
    return Recurrent(nn.LSTM, bidirectional=True)


@LAYOUTS.add([(4, 4)])
def gru() -> nn.Module:
    return Recurrent(nn.GRU)


@LAYOUTS.add([(6, 4)], derivatives=("d0",))
def rnn() -> nn.Module:
    return Recurrent(nn.RNN, nonlinearity="tanh")


@LAYOUTS.add([(4, 4), (3,)], fast=True)
class RNNFromAState(nn.Module):
    """The initial state is computed from another input; every output of the sequence is read."""

    def __init__(self):
        super().__init__()
        self.start, self.rnn, self.out = nn.Linear(3, 16), nn.RNN(4, 16, nonlinearity="relu"), nn.Linear(16, 2)

    def forward(self, x: Tensor, parameters: Tensor) -> Tensor:
        y, _ = self.rnn(x.permute(1, 0, 2), self.start(parameters).unsqueeze(0))
        return self.out(y).permute(1, 0, 2)


@LAYOUTS.add([(4,)])
class LSTMCellUnrolled(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTMCell(4, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 16)
        for _ in range(3):
            h, c = self.cell(x, (h, c))
        return self.out(h)


@LAYOUTS.add([(2,)], derivatives=("d0", "d1d1"), fast=True)
class DeepEnsemble(nn.Module):
    """Members stacked along axis 0; their mean comes out."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList(mlp(2, 24, 24, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([net(x) for net in self.nets]).mean(0)


@LAYOUTS.add([(2,)])
class EnsembleWithSpread(DeepEnsemble):
    """Mean and standard deviation come out."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        members = torch.stack([net(x) for net in self.nets])
        return members.mean(dim=0), members.std(dim=0)


@LAYOUTS.add([(2,)], derivatives=("d0",))
class BatchedEnsemble(nn.Module):
    """Members along axis 0 of every weight; the batch is axis 1."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(4, 2, 24)), nn.Parameter(torch.randn(4, 24, 24) / 5)
        self.bias, self.last = nn.Parameter(torch.randn(4, 1, 24)), nn.Parameter(torch.randn(4, 24, 1) / 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(torch.baddbmm(self.bias, x.expand(4, -1, -1), self.first))
        return torch.bmm(torch.tanh(h @ self.second), self.last).mean(0)


@LAYOUTS.add([(3,)], fast=True)
class EinsumEnsemble(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(3, 3, 16)), nn.Parameter(torch.randn(3, 16, 16) / 4)
        self.last = nn.Parameter(torch.randn(3, 16, 2) / 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(torch.einsum("bi,eio->beo", x, self.first))
        h = torch.tanh(torch.einsum("bei,eio->beo", h, self.second))
        return torch.einsum("bei,eio->beo", h, self.last).mean(1)


@LAYOUTS.add([(2,)], derivatives=("d1",))
class VmappedEnsemble(nn.Module):
    """torch.func's way: one network, called with stacked weights."""

    def __init__(self):
        super().__init__()
        nets = [mlp(2, 16, 16, 1) for _ in range(3)]
        stacked, _ = torch.func.stack_module_state(nets)
        self.names = list(stacked)
        self.weights = nn.ParameterList(nn.Parameter(stacked[name].detach()) for name in self.names)
        self.skeleton = [copy.deepcopy(nets[0])]  # in a list: no part of the network

    def forward(self, x: Tensor) -> Tensor:
        weights = dict(zip(self.names, self.weights, strict=True))
        return torch.vmap(lambda w: torch.func.functional_call(self.skeleton[0], w, (x,)))(weights).mean(0)


@LAYOUTS.add([(3,)], derivatives=("d2",))
class VmappedRows(nn.Module):
    """Written for one sample, called with many."""

    def __init__(self):
        super().__init__()
        self.net = mlp(3, 24, 24, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda point: self.net(point) * torch.sin(point.sum()))(x)


@LAYOUTS.add([(4,)])
class MixtureOfExperts(nn.Module):
    """Dense routing: every expert answers, gates weigh the answers."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.first, self.second = nn.Parameter(torch.randn(3, 4, 24) / 2), nn.Parameter(torch.randn(3, 24, 2) / 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(torch.einsum("bi,eio->ebo", x, self.first))
        return torch.einsum("be,ebo->bo", torch.softmax(self.gate(x), dim=-1), h @ self.second)


@LAYOUTS.add([(4, 8)], fast=True)
class HeadsMergedWithTheBatch(nn.Module):
    """Linear attention, sequence first, as nn.MultiheadAttention arranges its heads."""

    def __init__(self):
        super().__init__()
        self.inward, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        length, batch, _ = x.shape
        q, k, v = (t.contiguous().view(length, batch * 2, 4).transpose(0, 1) for t in self.inward(x).chunk(3, dim=-1))
        y = torch.bmm(torch.bmm(F.elu(q) + 1, (F.elu(k) + 1).transpose(1, 2)), v) / length
        y = y.transpose(0, 1).contiguous().view(length * batch, 8)
        return self.out(y).view(length, batch, 8).transpose(0, 1)


@LAYOUTS.add([(4, 8)])
class TransformerSequenceFirst(nn.Module):
    """torch's own layer, in its default layout."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.TransformerEncoderLayer(8, 2, 24, activation="gelu"), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x.permute(1, 0, 2)).mean(dim=0))


@LAYOUTS.add([(4, 8)])
class AttentionWithWeights(nn.Module):
    """Sequence first, and the weights are answered too: heads are merged with the batch."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.transpose(0, 1)
        y, weights = self.attention(x, x, x)
        return y.transpose(0, 1), weights


def causal(length: int) -> Tensor:
    """True where attention may not look."""
    return torch.triu(torch.ones(length, length, dtype=torch.bool), 1)


@LAYOUTS.add([(4, 8)], fast=True)
class AttentionWithMaskAndWeights(nn.Module):
    """A mask of truth values becomes one of infinities in place."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("mask", causal(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(x, x, x, attn_mask=self.mask, need_weights=True)


@LAYOUTS.add([(4, 8)])
class EncoderWithMask(nn.Module):
    """torch asks whether the mask is causal: a branch on the numbers of a buffer."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 24, batch_first=True), 2)
        self.register_buffer("mask", causal(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x, mask=self.mask)


@LAYOUTS.add([(4, 8)])
class DecoderOfLatents(nn.Module):
    """Learned queries, the same for every sample, look at it and at each other."""

    def __init__(self):
        super().__init__()
        self.latent = nn.Parameter(torch.randn(1, 3, 8))
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 24, batch_first=True), 2)
        self.register_buffer("mask", causal(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.latent.expand(x.shape[0], -1, -1), x, tgt_mask=self.mask)


@LAYOUTS.add([(6, 3)], derivatives=("d0",))
class PointsMergedWithTheBatch(nn.Module):
    """A network over all points of all samples at once."""

    def __init__(self):
        super().__init__()
        self.points, self.out = mlp(3, 24, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.points(x.reshape(-1, 3)).reshape(x.shape[0], -1, 16)
        return self.out(torch.tanh(h.mean(dim=1)))


class Cartesian(nn.Module):
    """A DeepONet whose trunk sees points that the module holds."""

    def __init__(self):
        super().__init__()
        self.branch, self.trunk = mlp(12, 24, 16), mlp(2, 24, 16)
        self.register_buffer("points", torch.rand(9, 2))


@LAYOUTS.add([(12,)])
class CartesianEinsum(Cartesian):
    def forward(self, f: Tensor) -> Tensor:
        return torch.einsum("bi,ni->bn", self.branch(f), self.trunk(self.points))


@LAYOUTS.add([(12,)])
class CartesianPointsFirst(Cartesian):
    """(points, batch) in between."""

    def forward(self, f: Tensor) -> Tensor:
        basis = self.trunk(self.points)
        return torch.tanh(basis @ self.branch(f).T).T + (basis[:, None] * self.branch(f)[None]).mean(-1).T


@LAYOUTS.add([(3,)], derivatives=("d1",))
class MaskedFlow(nn.Module):
    """Two masked autoregressive steps (MADE), with a leading axis of one sample, as sbi writes them."""

    def __init__(self):
        super().__init__()
        order = torch.arange(24) % 3
        self.register_buffer("inward", (order[:, None] > torch.arange(3)).float())
        self.register_buffer("outward", (torch.arange(3)[:, None] >= order).float().repeat(2, 1))
        self.first = nn.ParameterList(nn.Parameter(torch.randn(24, 3) / 2) for _ in range(2))
        self.second = nn.ParameterList(nn.Parameter(torch.randn(6, 24) / 5) for _ in range(2))

    def forward(self, theta: Tensor) -> Tensor:
        x, log_det = theta.unsqueeze(0), 0.0
        for w, v in zip(self.first, self.second, strict=True):
            shift, scale = F.linear(torch.tanh(F.linear(x, w * self.inward)), v * self.outward).chunk(2, dim=-1)
            x = ((x - shift) * torch.exp(-scale)).flip(-1)
            log_det = log_det - scale.sum(-1)
        return (log_det - 0.5 * x.square().sum(-1)).squeeze(0)


@LAYOUTS.add([()], fast=True)
class TimePerRow(nn.Module):
    """The input is (batch,), and so is the answer."""

    def __init__(self):
        super().__init__()
        self.net = mlp(2, 24, 24, 1)

    def forward(self, t: Tensor) -> Tensor:
        return self.net(torch.stack([t, torch.sin(6 * t)], dim=-1))[:, 0]
