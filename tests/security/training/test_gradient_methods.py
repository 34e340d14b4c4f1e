"""Every way to clipped gradients against Opacus' hooks, and what each refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.architectures import NetworkSpec, build_network
from security.errors import TrainingError
from security.training.bookkeeping import BookkeepingMethod, supports
from security.training.gradient_methods import METHODS, choose, make_method
from security.training.gradients import Batch, Clipping, probe, single_rows

torch.set_num_threads(1)  # two processes with two threads each only wait

CLIPPINGS = [Clipping(0.5), Clipping(0.5, "automatic"), Clipping(1e6)]
TABLE, IMAGE = NetworkSpec((6,), 3), NetworkSpec((2, 9, 8), 3, (4, 8))


class Sequence(nn.Module):
    """Linear layers over positions, and LayerNorm."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 5), nn.LayerNorm(5), nn.Linear(5, 3))

    def forward(self, rows):
        return self.inner(rows.view(len(rows), 3, 2)).mean(1)


def network(kind):
    torch.manual_seed(0)
    if kind == "sequence":
        return Sequence()
    if kind == "cnn-no-bias":
        return nn.Sequential(
            nn.Conv2d(2, 3, (3, 2), stride=(1, 2), dilation=2, bias=False),
            nn.Tanh(),
            nn.Flatten(),
            nn.LazyLinear(3),
        )
    if kind == "cnn-groups":  # more weights than are made at once, and two groups
        wide = nn.Conv2d(2, 512, 13, padding=6, groups=2)
        return nn.Sequential(wide, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(512, 3))
    if kind == "frozen":
        body = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
        body[0].weight.requires_grad_(False)
        return body
    hidden = {"mlp": (5,), "resnet": (8,)}.get(kind, ())
    spec = IMAGE if kind == "cnn" else NetworkSpec((6,), 3, hidden)
    body = build_network(kind, spec)
    for parameter in body.parameters():  # a last layer of zeros would hide mistakes
        nn.init.normal_(parameter, std=0.3)
    return body


def batch(kind, units=None):
    generator = torch.Generator().manual_seed(1)
    shape = (2, 9, 8) if kind.startswith("cnn") else (6,)
    inputs = torch.randn(7, *shape, generator=generator)
    labels = torch.randint(0, 3, (7,), generator=generator)
    if units is None:
        return single_rows(inputs, labels)
    return Batch(inputs, labels, torch.tensor(units), max(units) + 1)


KINDS = [
    "linear",
    "mlp",
    "resnet",
    "cnn",
    "cnn-no-bias",
    "cnn-groups",
    "sequence",
    "frozen",
]


def clipped(kind, method, given, clipping):
    body = network(kind)
    body(given.inputs)  # gives lazy layers their shape
    maker = make_method(body, method)
    result = maker.clipped_sums(given, clipping)
    maker.close()
    assert all(p.grad is None for p in body.parameters())
    return result


@pytest.mark.parametrize("units", [None, [0, 0, 0, 1, 2, 2, 3]])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_hooks(kind, units):
    given = batch(kind, units)
    for clipping in CLIPPINGS:
        wanted = clipped(kind, "hooks", given, clipping)
        got = clipped(kind, "bookkeeping", given, clipping)
        assert len(got.sums) == len(wanted.sums)
        for ours, theirs in zip(got.sums, wanted.sums):
            assert ours.shape == theirs.shape
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(got.norms, wanted.norms, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(got.losses, wanted.losses, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_no_unit_adds_more_than_the_norm(method):
    given = batch("cnn")
    huge = Batch(given.inputs * 1e3, given.labels, given.units, given.count)
    maker = make_method(network("cnn"), method)
    for kind in ("flat", "automatic"):
        longest = probe(maker, huge, Clipping(0.25, kind))
        assert 0.2 < longest <= 0.25 * (1 + 1e-5)
    maker.close()


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_is_zero(method):
    body = network("cnn")
    empty = single_rows(torch.zeros(0, 2, 9, 8), torch.zeros(0, dtype=torch.int64))
    result = make_method(body, method).clipped_sums(empty, CLIPPINGS[0])
    assert [s.shape for s in result.sums] == [p.shape for p in body.parameters()]
    assert all(not s.any() for s in result.sums)


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_is_not_finite(method):
    given = batch("mlp")
    given.inputs[3, 0] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        make_method(network("mlp"), method).clipped_sums(given, CLIPPINGS[0])


def test_the_bound_holds_in_half_precision():
    given = batch("cnn")

    def half(net, inputs, labels):
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(inputs)
        return nn.functional.cross_entropy(logits.float(), labels, reduction="none")

    maker = make_method(network("cnn"), "bookkeeping", half)
    exact = make_method(network("cnn"), "bookkeeping")
    longest = probe(maker, given, Clipping(0.25))
    assert longest <= 0.25 * (1 + 1e-5)
    for ours, theirs in zip(
        maker.clipped_sums(given, Clipping(0.25)).sums,
        exact.clipped_sums(given, Clipping(0.25)).sums,
    ):
        torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.1)


def test_choice():
    for kind in ("linear", "mlp", "resnet", "cnn", "sequence"):
        assert choose(network(kind)) == "bookkeeping"
    assert choose(nn.LSTM(2, 2)) == "hooks"
    # Methods of earlier versions, in configurations that were written for them.
    for name in ("functorch", "ghost", "vmap"):
        assert choose(network("mlp"), name) == "hooks"
    with pytest.raises(TrainingError, match="no gradient method 'magic'"):
        choose(nn.Linear(2, 2), "magic")


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, rows):
        return self.layer(torch.tanh(self.layer(rows)))


class Overwritten(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, rows):
        return self.layer(rows).mul_(2.0)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def forward(self, rows):
        return self.two(torch.tanh(self.one(rows)))


class OwnLinear(nn.Linear):
    """A subclass may compute anything."""


def test_bookkeeping_refuses_what_it_would_get_wrong():
    refused = [
        nn.Sequential(nn.Linear(6, 3), nn.ReLU(inplace=True)),
        nn.Conv2d(1, 2, 3, padding="same"),
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"),
        OwnLinear(6, 3),
    ]
    for body in refused:
        assert not supports(body)
        with pytest.raises(TrainingError, match="take 'hooks'"):
            BookkeepingMethod(body, lambda *_: torch.zeros(1))
    for body, message in ((Twice(), "used twice"), (Overwritten(), "changed in place")):
        with pytest.raises(TrainingError, match=message):
            make_method(body, "bookkeeping").clipped_sums(batch("mlp"), CLIPPINGS[0])


def test_a_shared_weight_goes_to_hooks():
    body = Shared()
    assert sum(p.numel() for p in body.parameters()) == 48
    assert choose(body) == "hooks"


def test_hooks_leave_nothing_behind_between_batches():
    body = network("mlp")
    maker = make_method(body, "hooks")
    given = batch("mlp")
    before = maker.clipped_sums(given, CLIPPINGS[0])
    rows = given.inputs.clone().requires_grad_()
    torch.autograd.grad(body(rows).sum(), rows)  # an attack, between two batches
    after = maker.clipped_sums(given, CLIPPINGS[0])
    for one, two in zip(before.sums, after.sums):
        assert torch.equal(one, two)
    maker.close()
