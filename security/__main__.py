"""`python -m security`: the operators' command."""

from __future__ import annotations

import sys

from security.commands import main

if __name__ == "__main__":
    sys.exit(main())
