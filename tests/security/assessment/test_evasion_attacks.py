"""Our attacks behind ART's interface, against the published implementations."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from security.assessment.art_library import art
from security.assessment.evasion.adapters import METHODS, evasion_attack
from security.assessment.evasion.fab import to_plane
from security.errors import AssessmentError
from tests.support.scanned import digits, digits_cnn

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = 30
RADII = {np.inf: 0.1, 2: 0.5}


@pytest.fixture(scope="module")
def setup():
    model = digits_cnn().requires_grad_(False)
    estimator = art().PyTorchClassifier(
        model=model,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    x, y = digits()[2][:ROWS], digits()[3][:ROWS]
    return model, estimator, x, y


def right(model, x, y):
    return model(torch.as_tensor(x)).argmax(1).numpy() == y


def length(moved, norm):
    flat = np.abs(moved).reshape(len(moved), -1).astype(np.float64)
    return flat.max(axis=1) if norm == np.inf else np.sqrt((flat**2).sum(axis=1))


def robust(setup, norm, **attacks):
    """Rows that stand after some of our attacks."""
    model, estimator, x, y = setup
    standing = right(model, x, y)
    for name, steps in attacks.items():
        attack = evasion_attack(
            estimator,
            name.replace("_", "-"),
            norm=norm,
            eps=RADII[norm],
            max_iter=steps,
        )
        made = attack.generate(x=x, y=y)
        assert made.shape == x.shape
        assert made.dtype == x.dtype
        assert np.isfinite(made).all()
        assert made.min() >= 0
        assert made.max() <= 1
        inside = length(made - x, norm) <= RADII[norm] + 1e-6
        if name != "fab":
            assert inside.all()
        standing &= right(model, made, y) | ~inside
    return standing


@pytest.mark.parametrize("norm", [np.inf, 2])
def test_the_ensemble_is_not_weaker_than_torchattacks(setup, norm):
    import torchattacks

    model, _, x, y = setup
    name = "Linf" if norm == np.inf else "L2"
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


@pytest.mark.parametrize("norm", [np.inf, 2])
def test_fab_is_as_close_as_foolbox(setup, norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox

    model, estimator, x, y = setup
    ours = evasion_attack(
        estimator, "fab", norm=norm, eps=10.0, max_iter=20, targets=9
    ).generate(x=x, y=y)
    mine = length(ours - x, norm)
    assert not right(model, ours, y).any()
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    kind = "LInfFMNAttack" if norm == np.inf else "L2FMNAttack"
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
    # ART's DLR fails on two classes, its Square on tables.
    weights = np.array([[2.0, -1.0], [0.5, 1.0], [-1.0, 1.5]], np.float32)
    layer = torch.nn.Linear(3, 2, bias=False)
    layer.weight.data = torch.as_tensor(weights.T.copy())
    estimator = art().PyTorchClassifier(
        model=layer,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=(3,),
        nb_classes=2,
        clip_values=(-5.0, 5.0),
        device_type="cpu",
    )
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    y = np.argmax(x @ weights, axis=1)
    gap = np.abs((x @ weights)[:, 0] - (x @ weights)[:, 1])
    normal = weights[:, 0] - weights[:, 1]
    for norm, size in ((np.inf, np.abs(normal).sum()), (2, np.linalg.norm(normal))):
        true = gap / size
        for name in METHODS:
            attack = evasion_attack(estimator, name, norm=norm, eps=0.4, max_iter=60)
            made = attack.generate(x=x, y=y)
            broken = np.argmax(made @ weights, axis=1) != y
            broken &= length(made - x, norm) <= 0.4 + 1e-6
            assert not broken[true > 0.4 + 1e-6].any(), name
            slack = 0.75 if name == "square" else 0.98
            assert broken[true < slack * 0.4].all(), name


def test_bounds_of_a_row_hold_at_every_step(setup):
    _, estimator, x, y = setup
    low, high = np.zeros((ROWS, 64)), np.ones((ROWS, 64))
    low[:, :32] = high[:, :32] = x.reshape(ROWS, -1)[:, :32]
    for name in METHODS:
        made = evasion_attack(
            estimator, name, eps=0.2, max_iter=10, bounds=(low, high)
        ).generate(x=x, y=y)
        moved = (made - x).reshape(ROWS, -1)
        assert (moved[:, :32] == 0).all(), name
        assert (moved[:, 32:] != 0).any(), name


def test_a_seed_repeats_an_attack(setup):
    _, estimator, x, y = setup
    for name in ("apgd-ce", "square"):
        attack = evasion_attack(estimator, name, eps=0.1, max_iter=5, seed=3)
        np.testing.assert_array_equal(attack.generate(x=x, y=y), attack.generate(x, y))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "nonsense"}, "no attack 'nonsense'"),
        ({"norm": 1}, "norm must be"),
        ({"eps": 0.0}, "must be positive"),
        ({"max_iter": 0}, "must be positive"),
    ],
)
def test_parameters_that_make_no_sense(setup, change, message):
    options = {"method": "fab", **change}
    with pytest.raises(AssessmentError, match=message):
        evasion_attack(setup[1], options.pop("method"), **options)


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
