"""pyarrow without pandas, which it imports, wherever it is installed, with the first list that becomes an array."""

from __future__ import annotations

import sys

import pyarrow as pa


class _Finder:
    """Finds no pandas. None in sys.modules does not do: what is compiled by Cython takes it for the module."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name, name=name)


def forget_pandas() -> None:
    """For the rest of this process pyarrow reads no objects of pandas, and need not import it.

    For processes of our own only. A frame that is asked for (`to_pandas`) imports pandas after all, and others may;
    nothing happens where it is loaded already.
    """
    sys.meta_path.insert(0, _Finder)
    try:
        pa.array([])  # it remembers what it found the first time
    finally:
        sys.meta_path.remove(_Finder)
