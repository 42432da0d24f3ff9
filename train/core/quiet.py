"""Keep other libraries' chatter out of what users of a command read."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Before the libraries are imported: their errors only. Our lines say what users of a command need."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # reports at import that an optional kernel is missing
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
