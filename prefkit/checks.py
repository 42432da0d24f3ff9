"""What a valid pair is: name → columnar rule. A rule marks rows; its severity says what happens to them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.tables import offsets

ROLES = ("system", "user", "assistant", "tool")
BLANK = re.compile(r"[\s\u200b\u200c\u200d\u2060\ufeff\u00ad\u180e]*\Z")


class Check(NamedTuple):
    """`rule(table)` marks rows, bool[n]; reject removes them, flag adds the name to `flags`."""

    severity: Literal["reject", "flag"]
    rule: Callable[[pa.Table], np.ndarray]


def run(table: pa.Table, tally: Counter[str]) -> tuple[pa.Table, np.ndarray]:
    """The table with its flags, and the reason of each row refused ("" for the rest), object[n].

    A row is refused for the first check in the order of `CHECKS` that finds it, so that reasons add up.
    """
    reasons = np.full(table.num_rows, "", dtype=object)
    for name, check in CHECKS.items():
        found = check.rule(table)
        if not found.any():
            continue
        if check.severity == "reject":
            reasons[found & (reasons == "")] = name
        else:
            table = _flag(table, name, found)
            tally[f"flags.{name}"] += int(found.sum())
    return table, reasons


def _flag(table: pa.Table, name: str, found: np.ndarray) -> pa.Table:
    flags = [
        [*(old or []), name] if hit and name not in (old or []) else old or []
        for old, hit in zip(table["flags"].to_pylist(), found, strict=True)
    ]
    return table.set_column(table.schema.get_field_index("flags"), table.schema.field("flags"), pa.array(flags))


def _parts(table: pa.Table, column: str) -> tuple[np.ndarray, pa.Array, pa.Array]:
    """Offsets [n+1], roles and contents of a message column."""
    lists = table[column].combine_chunks()
    flat = lists.flatten()
    return offsets(lists), flat.field(0), flat.field(1)


def _per_row(cuts: np.ndarray, marks: np.ndarray, how: Callable = np.logical_and.reduceat) -> np.ndarray:
    """Marks of messages joined into marks of rows; a row without messages is True."""
    lengths = np.diff(cuts)
    if (lengths == 1).all():
        return marks
    out = np.ones(len(lengths), dtype=bool)
    full = lengths > 0
    if full.any():
        out[full] = how(marks, cuts[:-1][full])
    return out


def _empty(column: str, table: pa.Table) -> np.ndarray:
    """Blank once white space and zero-width characters are gone; for a prompt the turns that are not system ones."""
    cuts, roles, contents = _parts(table, column)
    codes = contents.dictionary_encode()
    blank = np.array([BLANK.match(t or "") is not None for t in codes.dictionary.to_pylist()], dtype=bool)
    marks = blank[codes.indices.to_numpy()] if len(blank) else np.zeros(0, dtype=bool)
    return _per_row(cuts, marks | pc.equal(roles, "system").to_numpy(zero_copy_only=False))


def _identical(table: pa.Table) -> np.ndarray:
    """Chosen and rejected say the same after NFC and with white space collapsed."""
    sides = []
    seen: dict[str, int] = {}
    for column in ("chosen", "rejected"):
        cuts, _, contents = _parts(table, column)
        codes = contents.dictionary_encode()
        numbers = [seen.setdefault(_normal(t), len(seen)) for t in codes.dictionary.to_pylist()]
        texts = np.array(numbers, dtype=np.int64)[codes.indices.to_numpy()] if numbers else np.zeros(0, np.int64)
        sides.append((cuts, texts))
    (c_cuts, c), (r_cuts, r) = sides
    if len(c) == len(r) == table.num_rows:
        return c == r
    rows = range(table.num_rows)
    return np.array(
        [c[c_cuts[i] : c_cuts[i + 1]].tolist() == r[r_cuts[i] : r_cuts[i + 1]].tolist() for i in rows], bool
    )


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _bad_role(table: pa.Table) -> np.ndarray:
    found = np.zeros(table.num_rows, dtype=bool)
    for column in ("prompt", "chosen", "rejected"):
        cuts, roles, _ = _parts(table, column)
        known = pc.is_in(roles, value_set=pa.array(ROLES)).to_numpy(zero_copy_only=False)
        found |= ~_per_row(cuts, known)
    return found


def _misplaced(table: pa.Table) -> np.ndarray:
    """Not system? user (assistant user)* and then assistant … assistant; tool turns follow an assistant's."""
    found = np.zeros(table.num_rows, dtype=bool)
    for column, pattern in (("prompt", PROMPT_ROLES), ("chosen", RESPONSE_ROLES), ("rejected", RESPONSE_ROLES)):
        cuts, roles, _ = _parts(table, column)
        codes = roles.dictionary_encode()
        letters = [(r or "?")[0] for r in codes.dictionary.to_pylist()]
        text = "".join(letters[i] for i in codes.indices.to_pylist())
        seen: dict[str, bool] = {}
        for i, (a, b) in enumerate(pairwise(cuts)):
            turns = text[a:b]
            if turns not in seen:
                seen[turns] = pattern.fullmatch(turns) is None
            found[i] |= seen[turns]
    return found


PROMPT_ROLES = re.compile(r"s?u(a(t+a)*u)*(a(t+a)*t+)?")  # ends with the user's or a tool's turn
RESPONSE_ROLES = re.compile(r"a((t+|u)a)*")

CHECKS: dict[str, Check] = {
    "bad_role": Check("reject", _bad_role),
    "role_alternation": Check("reject", _misplaced),
    "empty_prompt": Check("reject", partial(_empty, "prompt")),
    "empty_chosen": Check("reject", partial(_empty, "chosen")),
    "empty_rejected": Check("reject", partial(_empty, "rejected")),
    "identical_pair": Check("reject", _identical),
}
