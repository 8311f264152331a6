"""Is fastsock as near to C, and as far ahead of `socket`, as it should be?

    python bench/ratios.py [--quick] [--rounds N] [--best-of N] [--json] [--check]

As `fastsock bench targets`.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "targets", *sys.argv[1:]]))
