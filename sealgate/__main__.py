"""`python -m sealgate` is the `sealgate` command."""

from __future__ import annotations

import sys

from sealgate.cli import main

if __name__ == "__main__":
    sys.exit(main())
