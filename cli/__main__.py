"""`python -m cli`, which is also `precall`."""

import sys

from cli.command import main

if __name__ == "__main__":
    sys.exit(main())
