"""How many datagrams should a call take?

    python bench/batch.py [--quick] [--full] [--json] [--html FILE] ...

As `fastsock bench batch`.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "batch", *sys.argv[1:]]))
