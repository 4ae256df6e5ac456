"""torchrun that ends with the process that started it: `python -m benchmark.elastic [torchrun's options]`.

Its exit code is that of the first process that failed, or 128 and the signal that it was ended by; torchrun's
own is 1 either way, and a scheduler could not tell a cell that was told to stop from one that failed.
"""

from __future__ import annotations

import os
import sys

from benchmark.die_with_parent import PARENT_VARIABLE, die_with_parent


def main() -> None:
    """Tie this process to its parent, then be torchrun."""
    die_with_parent()
    # Its processes may be started so late that they find it gone.
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun()
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        sys.exit(first.exitcode if first.exitcode > 0 else 128 - first.exitcode)


if __name__ == "__main__":
    main()
