"""Fits and exports cases: `python make.py OUT MODULE [NAME…]`, in any environment."""

from __future__ import annotations

import importlib
import sys
import time
import warnings
from pathlib import Path

import cases


def main() -> None:
    out, module, *names = sys.argv[1:]
    warnings.simplefilter("ignore")
    known: dict[str, cases.Case] = importlib.import_module(module).CASES
    for name in names or known:
        began = time.perf_counter()
        cases.write(Path(out), name, known[name])
        print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
