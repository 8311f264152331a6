"""What does asyncio cost per datagram, and how many does it take in?

    python bench/aio.py [--quick] [--full] [--json] [--html FILE] ...

As `fastsock bench asyncio`. Not called asyncio.py: that would hide the standard library's.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "asyncio", *sys.argv[1:]]))
