"""`python -m sealgate_toolkit`: the same command."""

import sys

from sealgate_toolkit import main

if __name__ == "__main__":
    sys.exit(main())
