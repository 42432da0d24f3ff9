"""How other libraries are imported: without their chatter, and for commands without what nobody there needs."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

UNNEEDED = {  # transformers imports them wherever they are: what it asks to know that
    "datasets": "is_datasets_available",
    "scipy": "is_scipy_available",  # for object detection
    "PIL": "is_vision_available",
}


def quiet_libraries() -> None:
    """Before the libraries are imported: their errors only. Our lines say what users of a command need."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # reports at import that an optional kernel is missing
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def lean_libraries() -> None:
    """Quiet, and without what commands do not need: transformers takes `UNNEEDED` for not installed, pyarrow pandas.

    For processes of our own only: it holds as long as the process. Other modules import all of them as ever.
    """
    from prefkit.no_pandas import forget_pandas

    forget_pandas()
    with _hidden(*UNNEEDED):
        quiet_libraries()
        for question in UNNEEDED.values():
            _ask_transformers(question)


def lean_peft() -> None:
    """Lean libraries, and peft without bitsandbytes, which it imports wherever it is, and torch's inductor with it.

    What needs it (models in 4 or 8 bit, its optimizers) imports it itself; only then has peft layers for it.
    """
    lean_libraries()
    _ask_transformers("is_bitsandbytes_available")
    with _hidden("bitsandbytes"):
        import peft
    from peft.tuners.lora import model as lora

    for ask in ("is_bnb_available", "is_bnb_4bit_available"):  # asked for each layer that gets an adapter
        if known := getattr(peft.import_utils, ask, None):
            setattr(lora, ask, _once_loaded("bitsandbytes", known))


def _ask_transformers(question: str) -> None:
    """Whether a package is installed: transformers remembers its first answer."""
    from transformers.utils import import_utils

    getattr(import_utils, question, bool)()


def _once_loaded(package: str, known: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: package in sys.modules and known()


@contextmanager
def _hidden(*packages: str) -> Iterator[None]:
    """Within, imports find none of the packages, but for those that are loaded."""
    names = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None: not there
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
