"""`python -m gsopt COMMAND ...`: the same program as `gsopt COMMAND ...`."""

import sys

try:
    from gsopt.commands import main
except KeyboardInterrupt:
    print("gsopt: interrupted", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
