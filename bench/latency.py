"""How long does an answer take, and the slowest of many?

    python bench/latency.py [--quick] [--full] [--json] [--html FILE] ...

As `fastsock bench latency`.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "latency", *sys.argv[1:]]))
