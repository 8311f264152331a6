"""Are connections and round trips on streams as fast as socket's?

    python bench/streams.py [--quick] [--full] [--json] [--html FILE] ...

As `fastsock bench streams`.
"""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "streams", *sys.argv[1:]]))
