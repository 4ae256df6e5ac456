"""The first module that the server of cells imports (forked_cell.py): from then on it ends with the harness.

By itself it would look for that only when it has imported torch and read the embedded sets. The signals that
were blocked while it was started it ignores; they are free again, for the cells.
"""

from __future__ import annotations

import signal

from benchmark.die_with_parent import die_with_parent
from benchmark.stopping import STOPPING

die_with_parent()
for number in STOPPING:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
