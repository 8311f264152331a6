"""What does receiving a datagram cost?

    python bench/receive.py [--quick] [--full] [--json] [--html FILE] ...

As `fastsock bench receive`.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "receive", *sys.argv[1:]]))
