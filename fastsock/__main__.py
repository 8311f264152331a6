"""``python -m fastsock``: the ``fastsock`` command."""

import sys

from fastsock.cli import main

if __name__ == "__main__":
    sys.exit(main())
