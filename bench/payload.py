"""What does the size of the payloads change?

    python bench/payload.py [--quick] [--full] [--json] [--html FILE] ...

As `fastsock bench payload`.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "payload", *sys.argv[1:]]))
