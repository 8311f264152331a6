"""What does a busy Python thread cost a receiver?

    python bench/busy.py [--quick] [--full] [--json] [--html FILE] ...

As `fastsock bench busy`.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "busy", *sys.argv[1:]]))
