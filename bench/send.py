"""What does sending a datagram cost?

    python bench/send.py [--quick] [--full] [--json] [--html FILE] ...

As `fastsock bench send`.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "send", *sys.argv[1:]]))
