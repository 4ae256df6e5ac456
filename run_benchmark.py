#!/usr/bin/env python3
"""Entry script: python run_benchmark.py --protocol mini --methods all."""

import sys

from benchmark.stopping import exits_by_signals

if __name__ == "__main__":
    with exits_by_signals():
        from benchmark.cli import main

        sys.exit(main())
