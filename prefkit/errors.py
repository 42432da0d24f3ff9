"""The one error shown without a traceback: what is wrong, where, and what to do. Exit code 2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

FEW = 30  # names that are still listed
# In a URL, also one that was taken for a path: what stands after the name, unless it is a port; and as a parameter.
SECRET = re.compile(r"(:/{1,2}[^/\s:@]*):(?!\d+(?:[/?]|$))[^@\s]+@|([?&]password=)[^&\s)]*")


class UserError(Exception):
    """A mistake the user can mend, shown as one line: `what (where): fix`."""

    def __init__(self, what: str, where: object = "", fix: str = ""):
        self.what, self.where, self.fix = what, str(where), fix
        line = what + (f" ({where})" if self.where else "") + (f": {fix}" if fix else "")
        super().__init__(masked(line))

    def __reduce__(self):  # crosses process pools whole
        return type(self), (self.what, self.where, self.fix)


def masked(text: str) -> str:
    """Text whose URLs show no password."""
    return SECRET.sub(lambda m: f"{m[1]}:***@" if m[2] is None else f"{m[2]}***", text)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """A `UserError` for a name that is not in a registry, with the nearest known one."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = f"known: {', '.join(known)}" if not near or len(known) <= FEW else ""
    return UserError(f"unknown {kind} {name!r}", fix=f"{hint}{listed}".strip())
