"""Did a change slow a hot path? Exits with 1 where a ratio is 15 % below its floor in each of three runs.

    python bench/guard.py [--best-of N] [--json]

As `fastsock bench guard`; the floors are in fastsock/bench/floors.toml.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "guard", *sys.argv[1:]]))
