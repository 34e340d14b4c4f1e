"""scan.html: what loads, where links lead, what stands first, and how large it gets."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sealgate.charts import Bar, bars, interval_bar, line_chart
from sealgate.page import contents, number, page, table
from security.assessment.reporting.documents import render
from security.assessment.reporting.grouped import grouped
from security.assessment.reporting.html import to_html
from security.assessment.reporting.pictures import png_source
from security.assessment.results.report import ScanReport
from security.commands import main
from security.errors import AssessmentError
from tests.support.pages import check_structure
from tests.support.scanned import HOSTILE, digits, linear_onnx, save_npz
from tests.support.servers import ROOT

ATTACK = "<script>alert(1)</script>\"'><img src=//x onerror=alert(1)>{{ 7 * 7 }}"
CSS = "".join(
    (ROOT / "sealgate" / name).read_text() for name in ("charts.css", "page.css")
)


@pytest.fixture(params=["attacked", "numbers"])
def scanned(request) -> Path:
    return request.getfixturevalue(request.param)


def report_of(folder: Path) -> dict:
    return json.loads((folder / "scan.json").read_text())


def test_a_page_loads_nothing_and_its_links_lead_somewhere(scanned):
    found = check_structure((scanned / "scan.html").read_bytes())
    links = found.values("href")
    report = report_of(scanned)
    for result in report["results"]:
        if result["status"] != "skipped":
            anchor = f"#check-{result['check']}"
            # From the contents, from the first screen, and from each of its findings.
            own = [f for f in report["findings"] if f["check"] == result["check"]]
            assert links.count(anchor) >= 2 + len(own)
    for place in range(1, len(report["findings"]) + 1):
        # From the first screen or not, from the remedy, and from the check.
        assert links.count(f"#finding-{place}") >= 2


def test_bad_names_of_columns_and_groups_are_text(numbers):
    data = (numbers / "scan.html").read_bytes()
    found = check_structure(data)
    assert "img" not in {tag for tag, _ in found.tags}
    assert b"onerror=alert(1)&gt;" in data
    assert b'src="//x"' not in data


def hostile(value, key=""):
    """A report, every text of which that is not a name of ours is an attack."""
    if isinstance(value, dict):
        keep = ("schema", "rule", "severity", "status", "check", "norms")
        return {
            k if key != "conditions" else ATTACK: v if k in keep else hostile(v, k)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [hostile(item, key) for item in value]
    return ATTACK if isinstance(value, str) else value


def test_every_text_of_a_report_is_escaped(scanned):
    report = report_of(scanned)
    metrics = report["results"][1]["metrics"]
    metrics[f"accuracy/{ATTACK}=a"] = metrics[f"accuracy/{ATTACK}=b"] = {"value": 0.5}
    data = to_html(hostile(report))
    check_structure(data)
    assert data.count(b"<script") == 1
    assert data.count(b"&lt;script&gt;alert(1)") > 100
    assert b"49" not in data.replace(b"{{ 7 * 7 }}", b"").split(b"<h1>")[1][:200]


def test_what_is_drawn_by_hand_escapes():
    chart = {
        "title": ATTACK,
        "x": ATTACK,
        "y": ATTACK,
        "series": [{"name": ATTACK, "points": [[0, 1], [1, 0]]}] * 7,
    }
    made = [
        line_chart(chart),
        bars([(ATTACK, [Bar(ATTACK, 1, 0, 2, 0.95, 3, ATTACK)] * 30)], first=ATTACK),
        table([ATTACK, 1], [[ATTACK, ATTACK]] * 30, name=ATTACK),
        table(["", ATTACK], [[ATTACK, 3]], matrix=True),
    ]
    nav = contents([("a", ATTACK, [("a", ATTACK)])])
    data = page(
        ATTACK, '<p id="a"></p>' + "".join(made).replace(" id=", " alt="), nav=nav
    )
    check_structure(data)
    assert data.count(b"<script") == 1


def test_one_remedy_stands_once_with_all_that_it_mends(attacked):
    report = report_of(attacked)
    text = (attacked / "scan.html").read_text()
    remedies = {item["remedy"] for item in report["findings"]}
    assert len(remedies) < len(report["findings"])
    _, _, section = text.partition('<h2 id="remedies">')
    section, _, _ = section.partition("<h2")
    for remedy in remedies:
        assert text.count(remedy.replace("'", "&#39;")) == 1
    assert section.count("<li><span") == len(report["findings"])


def test_how_good_the_answers_are_stands_first(attacked, numbers):
    first = (attacked / "scan.html").read_text().partition('<h2 id="findings">')[0]
    assert (
        f"accuracy</span><b>{number(_quality(attacked)['accuracy']['value'])}<" in first
    )
    assert "Confusion: true class by row" in first
    assert '<table class="matrix">' in first
    first = (numbers / "scan.html").read_text().partition('<h2 id="findings">')[0]
    for name, title in (
        ("mae", "mean absolute error"),
        ("rmse", "root mean squared error"),
    ):
        metric = _quality(numbers)[name]
        interval = f"{metric['low']:.3f} to {metric['high']:.3f} (95%), n=120"
        assert f"{title}</span><b>{metric['value']:.3f}</b>" in first
        assert interval in first
    assert "Truth by answer" in first


def _quality(folder):
    (result,) = (r for r in report_of(folder)["results"] if r["check"] == "quality")
    return result["metrics"]


def test_groups_are_bars_beside_each_other(numbers):
    (fairness,) = (r for r in report_of(numbers)["results"] if r["check"] == "fairness")
    _, tables = grouped(fairness)
    text = (numbers / "scan.html").read_text()
    _, _, section = text.partition('<h2 id="check-fairness">')
    for name, (title, first, groups) in zip(("mae", "mean_error"), tables, strict=True):
        assert f"<h3>{title}</h3>" in section
        ((_, own),) = groups
        assert first == "group"
        assert [bar.name for bar in own] == [f"{HOSTILE}1", f"{HOSTILE}2"]
        for bar in own:
            stated = fairness["metrics"][f"{name}/group={bar.name}"]
            ends = stated["low"], stated["high"]
            assert (bar.value, bar.low, bar.high) == (stated["value"], *ends)
            interval = f"[{ends[0]:.3f}, {ends[1]:.3f}]"
            assert f'{bar.value:.3f} <span class="interval">{interval}' in section


@pytest.mark.parametrize(
    ("names", "alone", "titles"),
    [
        (["accuracy", "accuracy/class=a"], ["accuracy", "accuracy, class=a"], []),
        (
            ["mae/sex=F", "mae/sex=M"],
            [],
            [("Mean absolute error, by sex", "sex", [""])],
        ),
        (
            ["tpr/sex=F", "tpr/sex=M", "fpr/sex=F", "fpr/sex=M"],
            [],
            [("By sex", "sex", ["TPR", "FPR"])],
        ),
        (
            ["drop/noise=1", "drop/noise=2", "drop/blur=1", "drop/blur=2"],
            [],
            [("Drop", "", ["by noise", "by blur"])],
        ),
        (
            ["robust_accuracy_l2", "robust_accuracy_l2/0.1", "radius_l2"],
            ["radius L2"],
            [("Robust accuracy L2, by radius", "radius", [""])],
        ),
        (["a/b=c,d", "a/,", "a/=", "a/=="], [], [("A", "", [""])]),
    ],
)
def test_what_stands_beside_what(names, alone, titles):
    metrics = {name: {"value": 0.5, "low": 0.4, "high": 0.6} for name in names}
    single, tables = grouped({"check": "x", "metrics": metrics})
    assert [bar.name for bar in single] == alone
    made = [(title, first, [name for name, _ in own]) for title, first, own in tables]
    assert made == titles


def test_each_bar_of_several_radii_is_called_by_its_radius():
    values = {"": 0.5, "/0.02": 0.9, "/0.3": 0.2, "/1e-05": 0.95}
    metrics = {f"robust_accuracy_linf{end}": {"value": values[end]} for end in values}
    metrics["radius_linf"] = {"value": 8 / 255}
    _, [(_, _, [(_, found)])] = grouped({"check": "evasion", "metrics": metrics})
    shown = [(bar.name, bar.value) for bar in found]
    expected = [("1e-05", 0.95), ("0.02", 0.9), ("0.0313725", 0.5), ("0.3", 0.2)]
    assert shown == expected


def test_long_tables_can_be_filtered_and_short_ones_need_no_field(attacked):
    text = (attacked / "scan.html").read_text()
    assert "Rows, L\N{INFINITY}: 30" in text
    assert text.count("data-filter=") == len(
        re.findall(r"<table[^>]*data-filter", text)
    )
    assert "data-filter" not in table(["a"], [[1]] * 20)
    assert 'data-filter="x"' in table(["a"], [[1]] * 21, name="x")
    # The field is the script's: a reader without scripts sees none that does nothing.
    assert "<input" not in text


def test_ten_of_the_largest_pictures_are_below_a_megabyte(attacked):
    report = report_of(attacked)
    noise = np.random.default_rng(0).random((3, 64, 64, 3)).round(4).tolist()
    (evasion,) = (r for r in report["results"] if r["check"] == "evasion")
    example = evasion["details"]["examples"][0]
    evasion["details"]["examples"] = [example | {"images": noise}] * 10
    data = render(json.dumps(report).encode(), "html")
    assert data.count(b'class="pixels"') == 30
    assert len(data) < 1_000_000


def test_a_scan_draws_images_that_are_long_rows(tmp_path):
    x = digits()[2]
    images, weights = 2 * x[:60, 0] - 1, np.random.default_rng(0).normal(size=(64, 10))
    answers = np.argmax(images.reshape(60, 64) @ weights, axis=1)
    (tmp_path / "model.onnx").write_bytes(linear_onnx(weights))
    rows = save_npz(tmp_path / "rows.npz", images.reshape(60, 64), answers)
    arguments = ["scan", str(tmp_path / "model.onnx"), "--data", str(rows)]
    arguments += [
        "--check",
        "evasion-cost",
        "--jobs",
        "1",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(arguments) == 0
    sources = check_structure((tmp_path / "o" / "scan.html").read_bytes()).values("src")
    assert sources
    assert len(sources) % 3 == 0  # before, after, and the change
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
        for source in sources
    ]
    for before, after, change in zip(shown[::3], shown[1::3], shown[2::3]):
        assert np.abs(x[:60, 0] - before / 255).max(axis=(1, 2)).min() < 0.01
        assert ((before != after) == (change != change[before == after][0])).all()


def test_a_picture_is_the_values_that_it_was_made_of():
    for shape in ((3, 5), (2, 4, 3)):
        values = np.random.default_rng(0).integers(0, 256, shape)
        source = png_source((values / 255).tolist())
        shown = base64.b64decode(source.partition(",")[2])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown))), values)
    assert png_source([[float("nan"), -1.0, 2.0]]) == png_source([[0.0, 0.0, 1.0]])


def test_a_bar_and_its_interval_lie_on_the_axis():
    made = interval_bar(0.5, 0.25, 0.75)
    assert '<rect x="0.0%" y="4" width="50.0%"' in made
    assert '<line x1="25.0%" x2="75.0%" y1="9" y2="9"/>' in made
    below = interval_bar(-1.0, -2.0, 0.0, ends=(-2.0, 2.0))
    assert '<rect x="25.0%" y="4" width="25.0%"' in below
    assert "whisker" not in interval_bar(0.5)


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([0.2, 0.9], ("0", "1")),
        ([0.2, 0.1], ("0", "0.200")),
        ([-0.5, 170_000.0], ("0", "200,000")),
        ([-3.0, 5.0], ("-4", "6")),
        ([-3.0, -1.0], ("-3", "0")),
        ([0.0, 0.0], ("0", "0.200")),
    ],
)
def test_an_axis_has_round_ends_and_zero(values, ends):
    made = bars([("", [Bar("a", value) for value in values])], first="")
    assert tuple(re.findall(r"<span>([^<]*)</span>", made)) == ends


def _channels(colour: str) -> list[float]:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    return [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]


def _luminance(channels: list[float]) -> float:
    """Relative luminance, as in WCAG 2.2."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def _contrast(one: list[float], other: list[float]) -> float:
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_has_enough_contrast(mode):
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    assert len(blocks) == 3
    colours = {
        name: _channels(value)
        for name, value in re.findall(r"--(\w+): (#\w+)", blocks[mode])
    }
    for ground in ("page", "panel"):
        for name in ("text", "quiet", "error", "warning", "note", "fine", "link"):
            assert _contrast(colours[name], colours[ground]) >= 4.5, (ground, name)
    # Counts on the darkest shade of a confusion matrix.
    share = max(int(value) for value in re.findall(r"--m: (\d+)%", CSS)) / 100
    for name in ("s0", "s1"):
        mixed = [
            share * own + (1 - share) * below
            for own, below in zip(colours[name], colours["page"])
        ]
        assert _contrast(colours["text"], mixed) >= 4.5


@pytest.mark.parametrize(
    "details",
    [
        {"tables": 3},
        {"tables": [{"title": "a", "columns": ["a"]}]},
        {"charts": [{"title": "a", "x": "", "y": "", "series": [{"points": [["a"]]}]}]},
        {"examples": [{"caption": "a", "images": [[[0.0], [0.0, 1.0]]]}]},
        {"examples": [{"caption": "a", "images": [[[[[0.0]]]]]}]},
        {"rows": [{"distance": "near"}, {"distance": 1}]},
        {"norms": []},
        {"rows": 7},
    ],
)
def test_details_that_cannot_be_drawn_are_refused(attacked, details):
    report = report_of(attacked)
    report["results"][0]["details"] = details
    with pytest.raises(AssessmentError, match="not a scan report"):
        render(json.dumps(report).encode(), "html")


def test_an_older_report_is_drawn(attacked):
    """Members that came later are not needed."""
    report = report_of(attacked)
    for result in report["results"]:
        result["details"].pop("norms", None)
        del result["reliable"]
    report["target"].pop("classes")
    check_structure(to_html(report))
    assert ScanReport.parse((attacked / "scan.json").read_bytes())
