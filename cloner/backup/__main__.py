"""`python -m cloner.backup`, which is also `precall-registry`."""

import sys

from cloner.backup.command import main

if __name__ == "__main__":
    sys.exit(main())
