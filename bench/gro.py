"""What do joined datagrams save, UDP GRO and GSO?

    python bench/gro.py [--quick] [--full] [--json] [--html FILE] ...

As `fastsock bench gro`.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "gro", *sys.argv[1:]]))
