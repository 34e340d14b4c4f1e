"""Images in every layout: one picture, one attack, whatever the order of the values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from models.data.held_out import Holdout
from security.assessment.checks.evasion.plan import default_radius
from security.assessment.checks.evasion.square import Search, square
from security.assessment.checks.poisoning import trigger_check
from security.assessment.plan.checks import Unit
from security.assessment.plan.context import Context, prepare
from security.assessment.plan.images import (
    Layout,
    change_pictures,
    drawn_layout,
    layout_of,
    picture,
)
from security.assessment.plan.options import Options
from security.assessment.plan.source import TargetSource
from tests.support.scanned import digits, to_onnx

# Digits, and the same in colours: channels that differ.
GREY = digits()[2][:120]
COLOURS = np.concatenate([GREY, 0.5 * GREY, 1 - GREY], axis=1)
LABELS = digits()[3][:120]


def job_of(rows, shape, weights=None, **more):
    """A scan's job about rows of a shape, as a linear model takes them."""
    rows = np.ascontiguousarray(rows.reshape(len(rows), *shape), np.float32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 10))
    if weights is not None:
        model[1].weight.data = torch.as_tensor(np.ascontiguousarray(weights))
    holdout = Holdout("rows", rows, LABELS[: len(rows)], **more)
    source = TargetSource("onnx", "model.onnx", to_onnx(model, shape))
    return prepare(source, holdout, Options())[0]


def last(images):
    return np.moveaxis(images, 1, -1)


LAYOUTS = {
    "first": (GREY, (1, 8, 8)),
    "last": (GREY, (8, 8, 1)),
    "no channel": (GREY, (8, 8)),
    "flat": (GREY, (64,)),
    "flat, with ones": (GREY, (1, 64, 1)),
    "four axes": (GREY, (1, 8, 8, 1)),
    "colours first": (COLOURS, (3, 8, 8)),
    "colours last": (last(COLOURS), (8, 8, 3)),
    "flat, planes": (COLOURS, (192,)),
    "flat, pixels": (last(COLOURS), (1, 192)),
}
RANGES = {"unit": (0, 1), "signed": (-1, 1), "bytes": (0, 255)}


@pytest.mark.parametrize("ends", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize(("images", "shape"), LAYOUTS.values(), ids=LAYOUTS)
def test_an_image_in_any_layout_and_range_is_the_same_picture(images, shape, ends):
    low, high = ends
    job = job_of(low + (high - low) * images, shape)
    if np.size(images[0]) == 64:
        wanted = GREY[5, 0]
    else:
        wanted = np.moveaxis(COLOURS[5], 0, -1)
        if ends != (0, 1):  # where ranges are the data's, each channel has its own
            wanted = wanted / np.array([1.0, 0.5, 1.0])
    assert picture(job, job.rows[5]) == pytest.approx(wanted, abs=1e-4)


def test_what_changed_is_drawn_beside_it():
    job = job_of(GREY, (8, 8, 1))
    after = job.rows[0].copy()
    after[9] += 0.25
    after[10] -= 0.5
    *_, change = change_pictures(job, job.rows[0], after)
    grey = np.full((8, 8), 0.5)
    grey[1, 1], grey[1, 2] = 0.75, 0.0
    assert change == pytest.approx(grey)
    _, _, change = change_pictures(job, job.rows[0], job.rows[0])
    assert change == pytest.approx(np.full((8, 8), 0.5))


@pytest.mark.parametrize(
    ("shape", "size"), [((3, 130, 130), (44, 44)), ((1, 100, 30), (50, 15))]
)
def test_a_large_image_is_drawn_smaller(shape, size):
    job = job_of(GREY.repeat(2, 2), (1, 16, 8))
    images = np.random.default_rng(0).random((40, *shape))
    large = replace(
        job,
        shape=shape,
        rows=images.reshape(40, -1),
        space=replace(
            job.space, low=np.zeros(images[0].size), high=np.ones(images[0].size)
        ),
    )
    drawn = np.array(picture(large, large.rows[0]))
    assert drawn.shape[:2] == size
    assert drawn.mean() == pytest.approx(images[0].mean(), abs=0.01)
    assert drawn.std() < images[0].std()


@pytest.mark.parametrize(
    ("rows", "more"),
    [
        (np.random.default_rng(0).random((120, 64)), {}),  # no neighbours
        (np.sin(np.linspace(0, 6, 64)) + GREY[:, 0, :, :1].mean(1), {}),  # a curve
        (GREY, {"columns": tuple("abcdefgh"[i % 8] * (i // 8 + 1) for i in range(64))}),
        (GREY[..., :6], {}),  # no square
    ],
    ids=["noise", "curve", "named", "48"],
)
def test_rows_that_are_no_images_stay_columns(rows, more):
    rows = rows.reshape(len(rows), -1)
    job = job_of(rows, rows.shape[1:], **more)
    assert drawn_layout(job) is layout_of(job) is None
    assert picture(job, job.rows[0]) is None


def test_columns_with_numbers_alone_may_be_pixels():
    names = tuple(f"pixel{place}" for place in range(64))
    job = job_of(GREY.reshape(-1, 64), (64,), columns=names)
    assert drawn_layout(job) == Layout(1, 8, 8)
    # They are drawn so; attacks and their radii are a table's, as ever.
    assert layout_of(job) is None


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((4, 8, 8), Layout(4, 8, 8)),
        ((8, 8, 4), Layout(4, 8, 8, last=True)),
        ((9, 8, 8), Layout(9, 8, 8)),
        ((8, 8, 9), Layout(9, 8, 8, last=True)),
        ((5, 6, 7), Layout(5, 6, 7)),
        ((3, 5, 3), Layout(3, 5, 3)),
        ((1, 6, 1, 5), Layout(1, 6, 5)),
    ],
)
def test_channels_are_told_by_their_number(shape, layout):
    job = replace(job_of(GREY, (1, 8, 8)), shape=shape)
    assert layout_of(job) == layout
    values = np.arange(np.prod(shape)).reshape(1, *shape)
    wanted = np.moveaxis(values, -1, 1) if layout.last else values
    wanted = wanted.reshape(1, *layout.shape)
    rows = values.reshape(1, -1)
    assert np.array_equal(layout.planes(rows), wanted)
    assert np.array_equal(layout.rows(layout.planes(rows)), rows)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (2, 3, 4, 5), (1, 7)])
def test_axes_that_are_no_image(shape):
    job = replace(job_of(GREY, (1, 8, 8)), shape=shape)
    assert layout_of(job) is drawn_layout(job) is None


def test_a_radius_of_colours_is_that_of_colours():
    first, second = (job_of(*LAYOUTS[f"colours {name}"]) for name in ("first", "last"))
    assert default_radius(first, "linf") == default_radius(second, "linf") == 8 / 255


def test_the_random_search_moves_squares_of_pixels_in_both_layouts():
    first, second = Layout(3, 6, 5), Layout(3, 6, 5, last=True)
    weights = np.random.default_rng(1).normal(size=90)
    start = np.random.default_rng(2).random((4, 90))

    def best(layout):
        rows = layout.rows(start.reshape(-1, *layout.shape))
        search = Search(
            *(rows, rows * 0, rows * 0 + 1, np.full(4, 0.7), "linf", layout, 40)
        )
        return square(
            search,
            lambda points, _: 9 + layout.planes(points).reshape(-1, 90) @ weights,
            np.random.default_rng(3),
        )

    (points, margins), (others, same) = best(first), best(second)
    assert np.allclose(margins, same)
    assert np.allclose(second.planes(others), first.planes(points))
    assert (margins < 9).all()


def test_a_patch_is_of_pixels_in_both_layouts(monkeypatch):
    monkeypatch.setitem(trigger_check._STEPS, "quick", 40)
    weights = np.random.default_rng(0).normal(size=(10, 192)).astype(np.float32)
    found = []
    for name, own in (
        ("first", weights),
        ("last", Layout(3, 8, 8, last=True).rows(weights.reshape(10, 3, 8, 8))),
    ):
        rows = COLOURS if name == "first" else last(COLOURS)
        context = Context(job_of(rows, LAYOUTS[f"colours {name}"][1], own))
        unit = Unit("trigger", "trigger/000", {"labels": [0]})
        found.append(trigger_check.TriggerCheck().run(unit, context).values["made"])
    for one, other in zip(*found, strict=True):
        assert one["turned"] == other["turned"]
        assert one["size"] == pytest.approx(other["size"], rel=0.02)
