"""What do many peers cost?

    python bench/peers.py [--quick] [--full] [--json] [--html FILE] ...

As `fastsock bench peers`.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "peers", *sys.argv[1:]]))
