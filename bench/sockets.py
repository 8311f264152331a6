"""What do many sockets cost?

    python bench/sockets.py [--quick] [--full] [--json] [--html FILE] ...

As `fastsock bench sockets`.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "sockets", *sys.argv[1:]]))
