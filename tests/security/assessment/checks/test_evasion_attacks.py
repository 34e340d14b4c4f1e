"""Our attacks, against the published implementations and known distances."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from security.assessment.checks.evasion.attacks import METHODS, propose
from security.assessment.checks.evasion.fab import to_plane
from security.assessment.checks.evasion.gradient import Ball
from security.assessment.checks.evasion.losses import margins
from security.assessment.checks.evasion.square import Search, square
from security.assessment.plan.images import Layout
from tests.support.scanned import digits, digits_cnn

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = 30
RADII = {"linf": 0.1, "l2": 0.5}


@pytest.fixture(scope="module")
def setup():
    model = digits_cnn().requires_grad_(False)
    return model, digits()[2][:ROWS], digits()[3][:ROWS]


def made_by(name, asked, norm, radius, *, bounds=(0.0, 1.0), **options):
    """What an attack proposes for the rows of ``asked``, in their shape."""
    model, x, y = asked
    centre = torch.as_tensor(x.reshape(len(x), -1))
    low, high = (
        torch.as_tensor(np.broadcast_to(edge, centre.shape).astype(x.dtype))
        for edge in bounds
    )
    if name == "square":
        return squared(asked, norm, radius, (low, high), **options)
    ball = Ball.of(centre, (low, high), radius, norm)
    flat = propose(
        name,
        lambda points: model(points.reshape(len(points), *x.shape[1:])),
        ball,
        torch.as_tensor(y),
        **options,
    )
    return flat.numpy().reshape(x.shape)


def squared(asked, norm, radius, box, *, steps, seed=0):
    """The random search, asking the model for margins."""
    model, x, y = asked
    flat = x.reshape(len(x), -1).astype(np.float64)
    low, high = (edge.numpy().astype(np.float64) for edge in box)
    if norm == "linf":
        low, high = np.maximum(low, flat - radius), np.minimum(high, flat + radius)
    search = Search(
        centre=flat,
        low=low,
        high=high,
        radius=np.full(len(x), radius),
        norm=norm,
        image=Layout(*x.shape[1:]) if x.ndim == 4 else None,
        queries=steps,
    )

    def evaluate(points, rows):
        shaped = torch.as_tensor(points.reshape(-1, *x.shape[1:]).astype(np.float32))
        with torch.no_grad():
            return (
                margins(model(shaped), torch.as_tensor(y[rows])).numpy().astype(float)
            )

    points, _ = square(search, evaluate, np.random.default_rng(seed))
    return points.reshape(x.shape).astype(x.dtype)


def right(model, x, y):
    return model(torch.as_tensor(x)).argmax(1).numpy() == y


def length(moved, norm):
    flat = np.abs(moved).reshape(len(moved), -1).astype(np.float64)
    return flat.max(axis=1) if norm == "linf" else np.sqrt((flat**2).sum(axis=1))


def robust(setup, norm, **attacks):
    """Rows that stand after some of our attacks."""
    model, x, y = setup
    standing = right(model, x, y)
    for name, steps in attacks.items():
        made = made_by(name.replace("_", "-"), setup, norm, RADII[norm], steps=steps)
        assert np.isfinite(made).all()
        assert made.min() >= 0
        assert made.max() <= 1
        inside = length(made - x, norm) <= RADII[norm] + 1e-6
        if name != "fab":
            assert inside.all()
        standing &= right(model, made, y) | ~inside
    return standing


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_ensemble_is_not_weaker_than_torchattacks(setup, norm):
    import torchattacks

    model, x, y = setup
    name = "Linf" if norm == "linf" else "L2"
    standing = right(model, x, y)
    for attack in (
        torchattacks.APGD(model, norm=name, eps=RADII[norm], steps=30, seed=0),
        torchattacks.APGDT(
            model, norm=name, eps=RADII[norm], steps=20, seed=0, n_classes=10
        ),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = attack(torch.as_tensor(x), torch.as_tensor(y)).detach().numpy()
        standing &= right(model, made, y)
    ours = robust(setup, norm, apgd_ce=30, apgd_t=20, fab=10)
    assert ours.sum() <= standing.sum()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_is_as_close_as_foolbox(setup, norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox

    model, x, y = setup
    ours = made_by("fab", setup, norm, 10.0, steps=20)
    mine = length(ours - x, norm)
    assert not right(model, ours, y).any()
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    kind = "LInfFMNAttack" if norm == "linf" else "L2FMNAttack"
    attack = getattr(foolbox.attacks, kind)(steps=40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, made, found = attack(
            wrapped, torch.as_tensor(x), torch.as_tensor(y), epsilons=None
        )
    theirs = length(made.numpy() - x, norm)
    both = found.numpy() & right(model, x, y)
    assert both.sum() > ROWS / 2
    assert np.median(mine[both]) <= 1.05 * np.median(theirs[both])


def test_square_breaks_what_a_gradient_attack_breaks_nearly(setup):
    for norm in RADII:
        white = robust(setup, norm, apgd_ce=30)
        black = robust(setup, norm, square=400)
        assert black.sum() <= white.sum() + 0.15 * ROWS


def test_two_classes_and_rows_that_are_tables(setup):
    # Neither a loss of two classes nor a search without neighbours may fail.
    weights = np.array([[2.0, -1.0], [0.5, 1.0], [-1.0, 1.5]], np.float32)
    layer = torch.nn.Linear(3, 2, bias=False)
    layer.weight.data = torch.as_tensor(weights.T.copy())
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    y = np.argmax(x @ weights, axis=1)
    gap = np.abs((x @ weights)[:, 0] - (x @ weights)[:, 1])
    normal = weights[:, 0] - weights[:, 1]
    sizes = {"linf": np.abs(normal).sum(), "l2": np.linalg.norm(normal)}
    for norm, size in sizes.items():
        true = gap / size
        for name in (*METHODS, "square"):
            made = made_by(name, (layer, x, y), norm, 0.4, bounds=(-5.0, 5.0), steps=60)
            broken = np.argmax(made @ weights, axis=1) != y
            broken &= length(made - x, norm) <= 0.4 + 1e-6
            assert not broken[true > 0.4 + 1e-6].any(), name
            slack = 0.75 if name == "square" else 0.98
            assert broken[true < slack * 0.4].all(), name


def test_bounds_of_a_row_hold_at_every_step(setup):
    _, x, _ = setup
    low, high = np.zeros((ROWS, 64)), np.ones((ROWS, 64))
    low[:, :32] = high[:, :32] = x.reshape(ROWS, -1)[:, :32]
    for name in (*METHODS, "square"):
        made = made_by(name, setup, "linf", 0.2, bounds=(low, high), steps=10)
        moved = (made - x).reshape(ROWS, -1)
        assert (moved[:, :32] == 0).all(), name
        assert (moved[:, 32:] != 0).any(), name


def test_a_seed_repeats_an_attack(setup):
    for name in ("apgd-ce", "square"):
        first, again = (
            made_by(name, setup, "linf", 0.1, steps=5, seed=3) for _ in "ab"
        )
        np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_step_to_a_plane_inside_a_box(norm):
    random = torch.Generator().manual_seed(0)
    points = torch.rand((50, 5), generator=random, dtype=torch.float64)
    normal = torch.randn((50, 5), generator=random, dtype=torch.float64)
    wanted = torch.randn(50, generator=random, dtype=torch.float64)
    box = (torch.zeros_like(points), torch.ones_like(points))
    step = to_plane(points, wanted, normal, box, norm)
    moved = points + step
    assert (moved >= -1e-12).all()
    assert (moved <= 1 + 1e-12).all()
    reached = (step * normal).sum(dim=1)
    room = torch.where(wanted[:, None] * normal > 0, 1 - points, points)
    most = (room * normal.abs()).sum(dim=1)
    can = most >= wanted.abs()
    assert can.sum() > 10
    torch.testing.assert_close(reached[can], wanted[can])
    torch.testing.assert_close(reached[~can], (most * wanted.sign())[~can])
    # No random step inside the box that reaches as far is shorter.
    size = step.abs().amax(1) if norm == "linf" else step.norm(dim=1)
    for _ in range(200):
        other = (torch.rand((50, 5), generator=random).double() - points) * 1.0
        enough = (other * normal).sum(dim=1) * wanted.sign() >= wanted.abs()
        length_ = other.abs().amax(1) if norm == "linf" else other.norm(dim=1)
        assert (length_[enough & can] >= size[enough & can] - 1e-9).all()
