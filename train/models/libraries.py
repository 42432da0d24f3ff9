"""How other libraries are imported: without their chatter, and for commands without what nobody there needs."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from prefkit.no_pandas import forget_pandas

# What transformers imports wherever it is installed, for data sets and for losses of object detection.
UNNEEDED = ("datasets", "scipy")
# What peft imports wherever it is installed, and networkx and half of a compiler with it.
SELDOM_NEEDED = "bitsandbytes"


def quiet_libraries() -> None:
    """Before the libraries are imported: their errors only. Our lines say what users of a command need."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # reports at import that an optional kernel is missing
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def lean_libraries() -> None:
    """The same for a command, which then starts in three quarters of the time and with 124 MB less.

    For the rest of this process transformers takes `UNNEEDED` and pyarrow takes pandas for not installed (other modules
    import them as ever), and `SELDOM_NEEDED` is loaded by its first use. Nothing happens to what is loaded already.
    """
    hidden = [name for name in UNNEEDED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an import finds nothing
    try:
        from transformers.utils import import_utils

        for name in hidden:
            getattr(import_utils, f"is_{name}_available")()  # it remembers its first answer
    finally:
        for name in hidden:
            del sys.modules[name]
    forget_pandas()
    import_at_first_use(SELDOM_NEEDED)
    quiet_libraries()

    from peft.tuners.lora import model as lora

    for ask in ("is_bnb_available", "is_bnb_4bit_available"):  # asked for every layer: is it one of bitsandbytes?
        setattr(lora, ask, partial(_if_loaded, SELDOM_NEEDED, getattr(lora, ask)))


def import_at_first_use(name: str) -> None:
    """Put a package into sys.modules that runs when its first attribute or submodule is asked for.

    importlib's own LazyLoader runs at any access, `__file__` included, which `inspect` asks of every module there is.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    del module.__path__  # an import of a submodule asks for it

    def load(attribute: str) -> Any:
        del module.__getattr__
        module.__path__ = spec.submodule_search_locations or []
        loader.exec_module(module)
        return getattr(module, attribute)

    module.__getattr__ = load  # type: ignore[method-assign]
    sys.modules[name] = module


def _if_loaded(name: str, known: Callable[[], bool]) -> bool:
    """Before a package has run nothing can be made of it."""
    return "__path__" in vars(sys.modules.get(name, object)) and known()
