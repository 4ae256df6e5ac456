#!/usr/bin/env python3
"""Entry script: python run_benchmark.py --protocol mini --methods all."""

import sys

from benchmark.cli import main

if __name__ == "__main__":
    sys.exit(main())
