"""Keep other libraries' chatter from those who run a command, and what nobody here needs out of its memory."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

# What transformers loads where it is installed, for data sets and for losses of object detection: 86 MB, and a tenth
# of the time a command takes to start.
UNNEEDED = ("datasets", "scipy")


def quiet_libraries(unneeded: Sequence[str] = ()) -> None:
    """Before the libraries are imported: their errors only. Our lines say what users of a command need.

    For the rest of this process transformers takes the `unneeded` for not installed; other modules import them as ever.
    That is for commands: in a process of their own users may want them. Nothing happens where transformers is loaded.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # reports at import that an optional kernel is missing
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    hidden = [name for name in unneeded if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an import finds nothing
    try:
        from transformers.utils import import_utils
        from transformers.utils.logging import disable_progress_bar

        for name in hidden:
            getattr(import_utils, f"is_{name}_available")()  # it remembers its first answer
    finally:
        for name in hidden:
            del sys.modules[name]
    disable_progress_bar()
