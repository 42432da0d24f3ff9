"""`python -m train sft|dpo|tiny-model …`: the same commands, for torchrun and accelerate launch."""

import atexit
import os
import sys
import threading
from typing import NoReturn

from prefkit.cli import run_to_end, train


def leave(code: int) -> NoReturn:
    """End this process; one of several ends without tearing the interpreter down.

    A thread of the process group that still wants the interpreter then aborts the process ("terminate called without an
    active exception"), and torchrun kills the others for it, whatever they are writing.
    """
    if "RANK" not in os.environ:
        sys.exit(code)
    threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its processes: uploads end here
    atexit._run_exitfuncs()  # and loggers their runs
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(run_to_end(train))
