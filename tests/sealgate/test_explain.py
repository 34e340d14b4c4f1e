"""client.explain and `sealgate explain`, by the real server."""

from __future__ import annotations

import asyncio
import html
import json
import re

import numpy as np
import pytest

from sealgate.async_client import AsyncClient
from sealgate.bars import cells_of, explanation_page, format_explanation
from sealgate.client import Client
from sealgate.errors import PermissionDeniedError, TensorError, TransportError
from sealgate.explanation import Explanation, read_explanation
from tests.conftest import check_security, mint, toy_settings
from tests.support.bundles import NAME
from tests.support.pages import check_structure
from tests.support.servers import sealgate

ROWS = np.array([[1, 2, 3], [-4, 5.5, 0]], np.float32)
# By the toy's weights: yes less no, times the distance from the middle, 0.
EXPECTED = ROWS * [-2.0, -0.25, 4.0]


@pytest.fixture(scope="module")
def explaining(deployment) -> str:
    return mint(deployment, f"explain:{NAME}")


@pytest.fixture(scope="module")
def profile_path(server, deployment, tmp_path_factory):
    path = tmp_path_factory.mktemp("client") / "profile.json"
    check_security(
        deployment,
        *("profile", "--url", server.url, "--model", NAME, "--allow", "explain"),
        *("--out", str(path)),
        **toy_settings(deployment),
    )
    return path


def of_yes(found: Explanation) -> np.ndarray:
    """Attributions as those of "yes", whichever was explained."""
    signs = np.where(found.classes == 1, 1.0, -1.0)
    return found.attributions * signs[:, None]


def test_what_each_column_contributes(server, explaining) -> None:
    with Client(server.url, token=explaining) as client:
        found = client.explain(NAME, {"features": ROWS})
        chosen = client.explain(NAME, {"features": ROWS}, of="no", version="1.0.0")
    np.testing.assert_allclose(of_yes(found), EXPECTED, atol=1e-5)
    np.testing.assert_allclose(chosen.attributions, -EXPECTED, atol=1e-5)
    difference = found.values - found.references
    np.testing.assert_allclose(found.attributions.sum(axis=1), difference, atol=1e-6)
    assert (found.method, found.exact, found.quantity) == ("additive", True, "log_odds")
    assert found.columns == ("a", "b", "c")
    assert [name for name, *_ in found.top(0, 2)] == ["c", "a"]
    assert [found.label(row) for row in (0, 1)] == ["yes", "yes"]
    assert sorted(found.outputs) == ["label", "probabilities"]


def test_the_asynchronous_client(server, explaining) -> None:
    async def run() -> Explanation:
        async with AsyncClient(server.url, token=explaining) as client:
            return await client.explain(NAME, {"features": ROWS}, method="local")

    found = asyncio.run(run())
    assert found.method == "local"
    assert found.fits is not None
    assert found.fits.min() > 0.999
    # The slopes over the public ranges, -10 to 10.
    np.testing.assert_allclose(of_yes(found), [[-40, -5, 80]] * 2, rtol=1e-3)


def test_the_scope_of_inference_is_not_enough(server, token) -> None:
    with (
        Client(server.url, token=token) as client,
        pytest.raises(PermissionDeniedError),
    ):
        client.explain(NAME, {"features": ROWS})


def test_an_unknown_method(server, explaining) -> None:
    with Client(server.url, token=explaining) as client, pytest.raises(TensorError):
        client.explain(NAME, {"features": ROWS}, method="lime")


@pytest.mark.parametrize(
    ("arrays", "parameters"),
    [
        ({}, {}),
        ({"explanation.value": np.zeros(1)}, {"columns": 7}),
        (
            {
                f"explanation.{name}": np.zeros(1)
                for name in ("attributions", "errors", "value", "reference")
            },
            {
                "columns": ["a"],
                "quantity": "score",
                "method": "trees",
                "exact": True,
                "evaluations": 1,
            },
        ),
        *(
            (
                {
                    "explanation.attributions": np.array([[bad]]),
                    "explanation.errors": np.zeros((1, 1)),
                    "explanation.value": np.zeros(1),
                    "explanation.reference": np.zeros(1),
                },
                {"columns": ["a"], "quantity": "score", "method": "trees"}
                | {"exact": True, "evaluations": 1},
            )
            for bad in (np.nan, np.inf, "1")
        ),
    ],
)
def test_answers_that_are_no_explanation(arrays, parameters) -> None:
    with pytest.raises(TransportError):
        read_explanation(arrays, parameters)


# The command.


def explain(*arguments: object):
    return sealgate("explain", *arguments, PYTHONIOENCODING="utf-8")


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b,c\n1,2,3\n-4,5.5,0\n")
    return path


def test_bars_on_a_terminal_and_a_page(profile_path, rows, tmp_path) -> None:
    page = tmp_path / "why.html"
    done = explain("--profile", profile_path, "--input", rows, "--html", page)
    assert done.returncode == 0, done.stderr
    first, *bars, last = done.stdout.splitlines()
    assert first.startswith("row 0: log-odds of yes 9.5 (reference 0); exact")
    assert [line.split()[:3] for line in bars] == [
        ["c", "3", "+12"],
        ["a", "1", "-2"],
        ["b", "2", "-0.5"],
    ]
    assert bars[0].endswith("|" + "\N{FULL BLOCK}" * 20)
    assert bars[1].rstrip().endswith("\N{FULL BLOCK}|")
    assert last == "charged as 5 rows"
    check_structure(page.read_bytes())
    text = page.read_text()
    assert "log-odds of yes 9.5" in text
    places = [text.index(f"<td>{bar}</td>") for bar in ("c = 3", "a = 1", "b = 2")]
    assert places == sorted(places)


def test_json_of_chosen_rows(profile_path, rows) -> None:
    done = explain(
        *("--profile", profile_path, "--input", rows, "--json"),
        *("--row", 1, "--of", "no"),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    np.testing.assert_allclose(
        document["explanation.attributions"], -EXPECTED[1:], atol=1e-5
    )


def test_a_row_that_the_file_has_not(profile_path, rows) -> None:
    done = explain("--profile", profile_path, "--input", rows, "--row", 7)
    assert (done.returncode, done.stderr) == (
        2,
        "error: --row: no row 7 in the file\n",
    )


def made_up(count: int = 3, **changes) -> Explanation:
    source = np.random.default_rng(0)
    fields = {
        "outputs": {},
        "attributions": source.normal(size=(1, count)),
        "errors": np.full((1, count), 0.1),
        "values": np.ones(1),
        "references": np.zeros(1),
        "classes": None,
        "fits": None,
        "columns": tuple(f"c{i}" for i in range(count)),
        "labels": (),
        "quantity": "score",
        "method": "permutations",
        "exact": False,
        "evaluations": 1,
    }
    return Explanation(**{**fields, **changes})


def test_many_columns_are_added_up() -> None:
    found = made_up(30)
    text = format_explanation(found, 0, ["1"] * 30, top=4, ascii_only=True)
    assert len(text.splitlines()) == 6
    assert "26 others" in text
    assert text.isascii() is False  # a standard error has its sign
    assert "#" in text


def test_nothing_contributes() -> None:
    found = made_up(attributions=np.zeros((1, 3)), errors=np.full((1, 3), np.nan))
    assert "|" in format_explanation(found, 0, ["1"] * 3, top=9, ascii_only=True)
    assert b"<rect" in explanation_page("m", found, [(0, ["1"] * 3)], top=9)


def test_a_page_shows_each_row_by_its_number_and_both_directions() -> None:
    found = made_up(
        2,
        attributions=np.array([[2.0, -1.0], [0.5, 4.0]]),
        errors=np.array([[0.25, 0.5], [np.nan, 0.5]]),
        values=np.ones(2),
        references=np.zeros(2),
    )
    data = explanation_page("m", found, [(7, ["x", "y"]), (3, ["z", "w"])], top=1)
    structure = check_structure(data)
    assert structure.values("href") == ["#row-7", "#row-3"]
    text = data.decode()
    seventh, third = text.split("<h2")[1:]
    assert '2 <span class="interval">[1.750, 2.250]</span>' in seventh
    assert "<td>1 others</td>" in seventh
    assert '4 <span class="interval">[3.500, 4.500]</span>' in third
    assert text.count("one standard error") == 1
    # Left of zero: the bar ends where the axis stands.
    axis, start, width = re.findall(
        r'"axis"><line x1="([0-9.]+)%.*?<rect x="([0-9.]+)%" y="4" width="([0-9.]+)%"',
        seventh,
    )[1]
    assert float(start) + float(width) == pytest.approx(float(axis))
    assert float(width) > 10


def test_a_page_escapes_what_others_wrote() -> None:
    bad = '<script>alert("x")</script>'
    found = made_up(
        columns=(bad, "b", "c"),
        labels=(bad,),
        classes=np.zeros(1, int),
        method=bad,
        quantity=bad,
    )
    data = explanation_page(bad, found, [(0, [bad] * 3)], top=9)
    check_structure(data)
    text = data.decode()
    assert bad not in text
    assert html.escape(bad) in text


def test_cells_by_their_names() -> None:
    metadata = {
        "inputs": [
            {
                "name": "x",
                "parameters": {
                    "columns": [
                        {"name": "work", "categories": ["private", "public"]},
                        {"name": "age"},
                    ]
                },
            },
            {"name": "y"},
        ]
    }
    arrays = {"x": np.array([[1.0, 37.5], [np.nan, 1.0]]), "y": np.array([[3], [4]])}
    assert cells_of(arrays, metadata, 0) == ["public", "37.5", "3"]
    assert cells_of(arrays, metadata, 1) == ["nan", "1", "4"]
