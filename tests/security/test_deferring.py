"""security.deferring: BentoML is imported by parts, and all of it is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from security.deferring import DEFERRED
from tests.support.servers import ROOT


def run(code: str) -> str:
    """What it prints, in a process that has imported nothing of BentoML yet."""
    begin = "import sys\nfrom security.deferring import deferring, DEFERRED\n"
    done = subprocess.run(
        [sys.executable, "-c", begin + code],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


SDK = "with deferring():\n    import bentoml, _bentoml_sdk, _bentoml_sdk.models.base\n"


def test_what_never_runs_is_not_imported() -> None:
    """And a stand-in is nothing that anybody else could meet."""
    shown = run(
        SDK + "print(*{name.partition('.')[0] for name in sys.modules})\n"
        "print(*DEFERRED & set(sys.modules))"
    )
    modules, stands_in = shown.splitlines()
    assert not {"rich", "aiohttp", "jinja2", "httpx", "fsspec"} & {*modules.split()}
    assert "pydantic" in modules.split()
    assert stands_in == ""


def test_what_is_used_is_there() -> None:
    """A name of a deferred module imports it: called, or looked into."""
    code = (
        "client = _bentoml_sdk.models.base.RestApiClient\n"
        "assert 'httpx' not in sys.modules\n"
        "made = client('http://127.0.0.1:1', 'token', 1)\n"
        "from bentoml._internal.cloud.client import RestApiClient\n"
        "print(type(made) is RestApiClient)\n"
        "from bentoml._internal import exportable\n"
        "print('file' in exportable.known_implementations.keys())\n"
    )
    assert run(SDK + code).split() == ["True", "True"]


def test_who_imports_it_later_gets_the_module_itself() -> None:
    code = (
        "import httpx, onnxruntime\n"
        "print(issubclass(httpx.HTTPError, Exception), httpx.__file__ is not None)\n"
        "class Transport(httpx.BaseTransport): pass\n"
        "print(isinstance(onnxruntime.RunOptions, type))\n"
    )
    assert run(SDK + code).split() == ["True"] * 3


def test_a_name_that_is_not_there_and_a_module_that_is_not_there() -> None:
    code = (
        "with deferring():\n    import httpx\n"
        "try:\n    httpx.nothing_of_the_kind()\n"
        "except AttributeError as error:\n    print(error)\n"
    )
    assert "no attribute 'nothing_of_the_kind'" in run(code)
    code = (
        "sys.path[:] = [p for p in sys.path if 'site-packages' not in p]\n"
        "with deferring():\n"
        "    try:\n        import aiohttp\n"
        "    except ModuleNotFoundError as error:\n        print(error.name)\n"
    )
    assert run(code).strip() == "aiohttp"


def test_another_thread_gets_the_modules_themselves() -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def work():\n    import httpx\n    return isinstance(httpx.Client, type)\n"
        "with deferring(), ThreadPoolExecutor(1) as pool:\n"
        "    print(pool.submit(work).result())\n"
    )
    assert run(code).strip() == "True"


@pytest.mark.parametrize("name", sorted(DEFERRED))
def test_each_of_them_exists(name: str) -> None:
    """One that a new version of its package has no more would be deferred in vain."""
    assert run(f"import {name}\nprint(1)").strip() == "1"


def test_a_package_gives_names_that_can_be_derived_from_and_caught() -> None:
    """Who takes a module out of its package afterwards meets the stand-in there."""
    code = (
        "with deferring(frozenset({'scipy.stats'})):\n    import scipy.stats\n"
        "from scipy import stats\n"
        "class Own(stats.rv_continuous): pass\n"
        "try:\n    raise ValueError\n"
        "except (stats.FitError, ValueError):\n    print(isinstance(Own, type))\n"
        "from scipy.stats import qmc\n"
        "print(stats.qmc is qmc)\n"
    )
    assert run(code).split() == ["True", "True"]
