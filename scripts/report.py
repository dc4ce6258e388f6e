#!/usr/bin/env python3
"""`python scripts/report.py ...` is `gsopt report ...`, also from a checkout that is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from gsopt.commands import main
except KeyboardInterrupt:
    print("gsopt: interrupted", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
