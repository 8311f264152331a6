"""What does asking which sockets are ready cost?

    python bench/epoll.py [--quick] [--full] [--json] [--html FILE] ...

As `fastsock bench epoll`.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "epoll", *sys.argv[1:]]))
