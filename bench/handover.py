"""What does taking from a Receiver cost, in time and memory?

    python bench/handover.py [--quick] [--full] [--json] [--html FILE] ...

As `fastsock bench handover`.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "handover", *sys.argv[1:]]))
