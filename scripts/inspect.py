#!/usr/bin/env python3
"""`python scripts/inspect.py ...` is `gsopt inspect ...`, also from a checkout that is not installed."""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if os.path.abspath(path) != HERE)]

if __name__ == "inspect":  # a script of this folder wants Python's own module, which this file hides
    del sys.modules["inspect"]
    __import__("inspect")
elif __name__ == "__main__":
    try:
        from gsopt.commands import main
    except KeyboardInterrupt:
        print("gsopt: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(main(["inspect", *sys.argv[1:]]))
