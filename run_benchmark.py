#!/usr/bin/env python3
"""Entry script: python run_benchmark.py --protocol mini --methods all."""

import sys

from benchmark.stopping import exits_by_signals

if __name__ == "__main__":
    with exits_by_signals():
        try:
            from benchmark.cli import main

            code = main()
        except ModuleNotFoundError as error:
            if "--debug" in sys.argv:
                raise
            print(f"error: {error}; pip install -r requirements.txt installs all packages", file=sys.stderr)
            code = 2
        sys.exit(code)
