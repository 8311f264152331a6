"""How many datagrams a second does each way take in, live?

    python bench/flood.py [--quick] [--full] [--json] [--html FILE] ...

As `fastsock bench flood`.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "flood", *sys.argv[1:]]))
