"""Clipped sums of random networks beside those of Opacus' own optimizer."""

from __future__ import annotations

import random

import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from security.training import bookkeeping
from security.training.examples import parts
from security.training.gradient_methods import make_method
from security.training.gradients import Batch, Clipping, single_rows

torch.set_num_threads(1)
ROWS, SIDE = 21, 9


def drawn_network(seed):
    """Convolutions of random shapes, a norm between them, linear layers behind."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    channels, layers = draw.choice([1, 2, 6]), []
    first = channels
    for _ in range(draw.randint(2, 3)):
        groups = draw.choice([1, 2]) if channels % 2 == 0 else 1
        wide = draw.choice([4, 16, 64])
        layers += [
            nn.Conv2d(
                channels,
                wide,
                (draw.randint(1, 3), draw.randint(1, 3)),
                stride=(draw.randint(1, 3), draw.randint(1, 2)),
                padding=(draw.randint(1, 2), draw.randint(1, 3)),
                dilation=(draw.randint(1, 2), 1),
                groups=groups,
                bias=draw.random() < 0.7,
            ),
            nn.GroupNorm(draw.choice([1, 2, 4]), wide),
            nn.Tanh(),
        ]
        channels = wide
    body = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(9), nn.Tanh())
    body.append(nn.Linear(9, 3))
    inputs = torch.randn(ROWS, first, SIDE, SIDE)
    body(inputs)  # gives the lazy layer its shape
    return body, single_rows(inputs, torch.randint(0, 3, (ROWS,)))


def of_opacus(body, batch, norm):
    """What Opacus' hooks and optimizer add up before they add noise."""
    module = GradSampleModule(body, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=0.1),
        noise_multiplier=0.0,
        max_grad_norm=norm,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    nn.functional.cross_entropy(
        module(batch.inputs), batch.labels, reduction="sum"
    ).backward()
    optimizer.clip_and_accumulate()
    sums = [p.summed_grad.clone() for p in optimizer.params]
    module.to_standard_module()
    return sums


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("kept", [1, bookkeeping._KEPT], ids=["pieces", "whole"])
@pytest.mark.parametrize("seed", range(12))
def test_random_networks_as_opacus_clips_them(seed, kept, monkeypatch):
    body, batch = drawn_network(seed)
    wanted = of_opacus(body, batch, 0.7)
    monkeypatch.setattr(bookkeeping, "_KEPT", kept)
    maker = make_method(body, "bookkeeping")
    got = maker.clipped_sums(batch, Clipping(0.7))
    maker.close()
    assert len(got.norms) == len(got.losses) == ROWS
    assert float(got.norms.max()) <= 0.7 * (1 + 1e-5)
    for ours, theirs in zip(got.sums, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_both_forms_of_a_weight_are_drawn(monkeypatch):
    """Held gradients and what they are made of: the test above sees both."""
    seen = set()
    original = bookkeeping._products

    def watched(*given):
        part = original(*given)
        seen.add(type(part).__name__)
        return part

    monkeypatch.setattr(bookkeeping, "_products", watched)
    for seed in range(12):
        body, batch = drawn_network(seed)
        make_method(body, "bookkeeping").clipped_sums(batch, Clipping(0.7))
    assert seen == {"Held", "_Products"}


def test_places_that_cancel_are_not_taken_for_short():
    """Where rounding is longer than the gradient, the norm is still none too short."""
    torch.manual_seed(0)
    into = torch.randn(500, 1, 1, 40).expand(500, 1, 2, 40) * 1e3
    out = torch.randn(500, 1, 1, 30) * torch.tensor([1.0, -1.0])[:, None]
    out = out + torch.rand(500, 1, 1, 1) * 1e-5 * torch.randn(500, 1, 2, 30)
    part = bookkeeping._Products(out, into, lambda total: total)
    exact = (out.double().transpose(2, 3) @ into.double()).flatten(1).square().sum(1)
    products = (into @ into.transpose(2, 3)) * (out @ out.transpose(2, 3))
    assert (products.sum((1, 2, 3)) < exact).any()  # without what is added
    assert (part.squares().double() >= exact).all()


def test_rounding_that_goes_one_way_takes_nothing_from_a_norm():
    """Of long rows that are even, float32 rounds each step of a product alike."""
    levels = torch.rand(40, 1, 1, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    apart = torch.tensor([1.0, 1.0 + 1e-4])[:, None]
    into = levels * apart * torch.ones(4608)
    out = levels.flip(0) * torch.tensor([1.0, -1.0])[:, None] * torch.ones(64)
    part = bookkeeping._Products(out, into, lambda total: total)
    exact = (out.double().transpose(2, 3) @ into.double()).flatten(1).square().sum(1)
    squares = part.squares().double()
    assert (squares >= exact * (1 - 1e-6)).all()
    assert (squares <= exact * (1 + 1e-2)).all()


def test_pieces_never_go_through_a_unit(monkeypatch):
    body, batch = drawn_network(3)
    units = torch.tensor([0] * 10 + [1, 2, 2, 3] + [4] * 5 + [5, 6])
    owned = Batch(batch.inputs, batch.labels, units, 7)
    assert [p.count for p in parts(owned, 8)] == [1, 3, 3]
    whole = make_method(body).clipped_sums(owned, Clipping(0.7))
    monkeypatch.setattr(bookkeeping, "_KEPT", 1)
    cut = make_method(body).clipped_sums(owned, Clipping(0.7))
    torch.testing.assert_close(cut.norms, whole.norms, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(cut.losses, whole.losses, atol=1e-6, rtol=1e-5)
    for one, other in zip(cut.sums, whole.sums, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_rows_of_their_own_are_cut_in_order():
    _, batch = drawn_network(0)
    cut = list(parts(batch, 8))
    assert [p.count for p in cut] == [8, 8, 5]
    assert torch.equal(torch.cat([p.inputs for p in cut]), batch.inputs)
    assert torch.equal(torch.cat([p.labels for p in cut]), batch.labels)
    assert all(torch.equal(p.units, torch.arange(p.count)) for p in cut)
