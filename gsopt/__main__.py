"""`python -m gsopt COMMAND ...`: the same program as `gsopt COMMAND ...`."""

import sys

from gsopt.commands import main

if __name__ == "__main__":
    sys.exit(main())
