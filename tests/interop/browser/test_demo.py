"""`make demo` in Chromium: asked by keyboard, read, looked at, and attacked.

``make interop-browser`` runs these, after ``make quickstart``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import CHROMIUM, Page, opened
from tests.support.servers import ROOT, free_port

HOME = Path(os.environ.get("SEALGATE_HOME", ROOT / ".sealgate"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("INTEROP") != "browser", reason="run by make interop-browser"
    ),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(
        not (HOME / "profile.json").exists(), reason="run make quickstart first"
    ),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("demo")
    subprocess.run(
        ["make", "--silent", "clients/js/dist/sealgate.min.js"], cwd=ROOT, check=True
    )
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "examples/demo/demo.py", "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        while b"open http" not in (folder / "log").read_bytes():
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        with opened(f"http://127.0.0.1:{port}/", folder) as found:
            found.wait_for("!document.getElementById('ask').disabled")
            yield found
    finally:
        process.terminate()
        process.wait(timeout=60)


def text(page: Page, name: str) -> str:
    return str(page.value(f"document.getElementById('{name}').textContent"))


def press_on(page: Page, name: str, key: str) -> None:
    """Go to an element by the keyboard, and press a key there."""
    for _ in range(80):
        if page.value("document.activeElement.id") == name:
            page.press(key)
            return
        page.press("Tab")
    pytest.fail(f"{name} cannot be reached by the keyboard")


def test_by_the_keyboard(page: Page) -> None:
    assert "verified" in text(page, "state")
    assert "ε = 3.00" in text(page, "passport")
    press_on(page, "second", "Space")
    press_on(page, "ask", "Enter")
    page.wait_for("document.getElementById('state').className === 'done'")
    assert text(page, "label") == "malignant"
    assert int(text(page, "sent-size").split()[0].replace(",", "")) > 1120
    press_on(page, "fetch-receipt", "Enter")
    page.wait_for("document.getElementById('receipt').textContent.includes('sha256:')")


def test_what_a_proxy_sees_changes_with_each_request(page: Page) -> None:
    seen = set()
    for _ in range(2):
        page.value("document.getElementById('ask').click()")
        page.wait_for("document.getElementById('state').className === 'done'")
        seen.add(text(page, "sent")[100:])
    assert len(seen) == 2


def test_a_proxy_that_changes_a_bit_is_noticed(page: Page) -> None:
    page.value("document.getElementById('flip').click()")
    page.value("document.getElementById('ask').click()")
    page.wait_for("document.getElementById('state').className === 'failed'")
    assert "does not authenticate" in text(page, "state")
    assert text(page, "label") == "no answer"
    page.value("document.getElementById('flip').click()")


def test_everything_has_a_name(page: Page) -> None:
    """What a screen reader says of each control, and of what changes."""
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = ("button", "spinbutton", "checkbox", "meter", "status")
    named = [
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in controls[:-1]
    ]
    assert {role for role, _ in named} >= {"button", "spinbutton", "checkbox"}
    assert [role for role, name in named if not name] == []
    assert any(
        node["role"]["value"] == "status" for node in nodes if not node["ignored"]
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["wide", "phone"])
def test_it_fits(page: Page, tmp_path: Path, width: int, dark: bool) -> None:
    from PIL import Image

    page.picture(tmp_path / "demo.png", dark=dark, width=width)
    assert page.value("document.documentElement.scrollWidth") <= width
    picture = Image.open(tmp_path / "demo.png").convert("L")
    light = sum(picture.histogram()[200:]) / (picture.width * picture.height)
    assert (light < 0.2) if dark else (light > 0.7)


def test_nobody_complained(page: Page) -> None:
    """No error in the console: the policy holds, and the page keeps to it."""
    assert [one for one in page.told if '"error"' in one or "exception" in one] == []
