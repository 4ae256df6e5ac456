"""The first module that the server of cells imports (forked_cell.py): from then on it ends with the harness.

By itself it would look for that only when it has imported torch and read the embedded sets.
"""

from __future__ import annotations

from benchmark.die_with_parent import die_with_parent

die_with_parent()
