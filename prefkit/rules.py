"""Rules over roles and whole texts: each marks the rows of candidates that it finds, bool[n].

They look at cells, where each text stands once, and not at rows.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.patterns import RESPONSES
from prefkit.shingles import jaccard_of, shingles, texts_of
from prefkit.tables import SIDES, Candidates, edges, offsets

ROLES = ("system", "user", "assistant", "tool")
INVISIBLE = "".join(c for c in map(chr, range(0x10000)) if c.isspace()) + "\u200b\u200c\u200d\u2060\ufeff\u00ad\u180e"
BLANK = "^[" + "".join(f"\\x{{{ord(c):x}}}" for c in INVISIBLE) + "]*$"


def _turns(cells: pa.ListArray) -> tuple[np.ndarray, pa.Array, pa.Array]:
    """Offsets [m+1], roles and contents of all cells."""
    flat = cells.flatten()
    return offsets(cells), flat.field(0), flat.field(1)


def _all(cuts: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Marks of messages joined into marks of cells; a cell without messages is True."""
    lengths = np.diff(cuts)
    if (lengths == 1).all():
        return marks
    missed = np.concatenate([[0], np.cumsum(~marks)])
    return missed[cuts[1:]] == missed[cuts[:-1]]


def _any(cuts: np.ndarray, marks: np.ndarray) -> np.ndarray:
    return ~_all(cuts, ~marks) & (np.diff(cuts) > 0)


def empty(side: str, made: Candidates) -> np.ndarray:
    """Blank once white space and zero-width characters are gone; for a prompt the turns that are not system ones."""
    cuts, roles, contents = _turns(made.cells)
    blank = pc.or_(pc.match_substring_regex(contents, BLANK), pc.equal(roles, "system")).to_numpy(zero_copy_only=False)
    return _all(cuts, blank)[made.side(side)]


def same_texts(made: Candidates) -> np.ndarray:
    """Chosen and rejected say the same after NFC and with white space collapsed."""
    chosen, rejected = (made.side(name) for name in RESPONSES)
    cuts, _, contents = _turns(made.cells)
    heads = _heads(contents, cuts)
    turns = np.diff(cuts)
    found = np.zeros(made.rows, dtype=bool)
    alike = (heads[chosen] == heads[rejected]) | (heads[chosen] == UNSURE) | (heads[rejected] == UNSURE)
    for i in np.flatnonzero(alike & (turns[chosen] == turns[rejected])):
        a, b = cuts[chosen[i]], cuts[rejected[i]]
        found[i] = all(
            _normal(contents[a + k].as_py()) == _normal(contents[b + k].as_py()) for k in range(turns[chosen[i]])
        )
    return found


def _heads(contents: pa.Array, cuts: np.ndarray) -> np.ndarray:
    """Seven bytes with which each cell begins, as a number, where neither NFC nor white space could change them."""
    sizes = pc.binary_length(contents).to_numpy(zero_copy_only=False)
    known = np.flatnonzero(np.diff(cuts) > 0)
    known = known[sizes[cuts[known]] >= 8]
    first = edges(contents, cuts[known], 8)
    steady = (first < 128).all(axis=1) & (first[:, 0] > 32) & ((first > 32) | (first == 32)).all(axis=1)
    steady &= ~((first[:, 1:] == 32) & (first[:, :-1] == 32)).any(axis=1)
    heads = np.full(len(cuts) - 1, UNSURE)
    heads[known[steady]] = first[steady, :7].astype(np.uint64) @ (np.uint64(256) ** np.arange(7, dtype=np.uint64))
    return heads


UNSURE = np.uint64(2**64 - 1)


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def near_identical(made: Candidates) -> np.ndarray:
    """Chosen and rejected begin or end alike and their word 3-grams overlap by more than 0.9 (Jaccard)."""
    found = np.zeros(made.rows, dtype=bool)
    sizes = pc.binary_length(_turns(made.cells)[2]).to_numpy(zero_copy_only=False)
    if len(sizes) != len(made.cells):
        return found
    chosen, rejected = (made.side(name) for name in RESPONSES)
    a, b = sizes[chosen], sizes[rejected]
    alike = np.flatnonzero((np.minimum(a, b) > 0.9 * np.maximum(a, b)) & (np.minimum(a, b) > 40))
    contents, one, other = _turns(made.cells)[2], chosen[alike], rejected[alike]
    begin, end = (
        (edges(contents, one, 8, end=e) == edges(contents, other, 8, end=e)).all(axis=1) for e in (False, True)
    )
    alike = alike[begin | end]
    if len(alike):
        found[alike] = jaccard_of(made.cells, chosen[alike], rejected[alike]) > 0.9
    return found & ~same_texts(made) if found.any() else found


def bad_role(made: Candidates) -> np.ndarray:
    """A role that is none of `ROLES`."""
    cuts, roles, _ = _turns(made.cells)
    good = _all(cuts, pc.is_in(roles, value_set=pa.array(ROLES)).to_numpy(zero_copy_only=False))
    return ~np.logical_and.reduce([good[made.side(name)] for name in SIDES])


def misplaced(made: Candidates) -> np.ndarray:
    """Not system? user (assistant user)* and then assistant … assistant; tool turns follow an assistant's."""
    cuts, roles, _ = _turns(made.cells)
    codes = roles.dictionary_encode()
    letters = np.array([(r or "?")[0] for r in codes.dictionary.to_pylist()] or ["?"])[codes.indices.to_numpy()]
    single = (np.diff(cuts) == 1).all()
    orders = letters if single else ["".join(letters[a:b]) for a, b in pairwise(cuts)]
    known, of_cell = np.unique(np.asarray(orders, dtype=str), return_inverse=True)
    found = np.zeros(made.rows, dtype=bool)
    for side, pattern in zip(SIDES, (PROMPT_ROLES, RESPONSE_ROLES, RESPONSE_ROLES), strict=True):
        wrong = np.array([pattern.fullmatch(o) is None for o in known.tolist()], dtype=bool)
        found |= wrong[of_cell][made.side(side)] if made.rows else False
    return found


PROMPT_ROLES = re.compile(r"s?u(a(t+a)*u)*(a(t+a)*t+)?")  # ends with the user's or a tool's turn
RESPONSE_ROLES = re.compile(r"a((t+|u)a)*")


def score_sign(made: Candidates) -> np.ndarray:
    """The chosen score is the lower one, or chosen is said to be preferred by less than half."""
    lower = pc.less(made.table["score_chosen"], made.table["score_rejected"]).fill_null(False)
    return pc.or_(lower, pc.less(made.table["p_chosen"], 0.5).fill_null(False)).to_numpy()


def later(made: Candidates) -> np.ndarray:
    """Known only from other texts: those of all pairs (`split.resolve`) or of evaluation sets (`contamination`)."""
    return np.zeros(made.rows, dtype=bool)


def no_licence(made: Candidates) -> np.ndarray:
    """The source names none."""
    return pc.equal(pc.list_value_length(made.table["licenses"]), 0).to_numpy()


def no_commerce(made: Candidates) -> np.ndarray:
    """A licence of the pair has the clause NC, or a column of licences that `meta` keeps."""
    licences = made.table["licenses"].combine_chunks()
    nc = pc.match_substring_regex(licences.flatten(), f"(?i){NC}").to_numpy(zero_copy_only=False)
    return _any(offsets(licences), nc) | _in_meta(made, rf"(?i)\"licen[cs]e\": ?\"[^\"]*{NC}")


NC = r"(?:\b|_)(?:nc(?:\b|_)|non-?commercial)"


def toxic(made: Candidates) -> np.ndarray:
    """The source's own mark of it, which `meta` keeps."""
    names = "(?:is_)?toxic|flagged|moderation_flagged|toxic_chat_tag"
    return _in_meta(made, rf"(?i)\"(?:{names})\": ?(?:true|1(?:\.0+)?[,}}]|\"true)")


def _in_meta(made: Candidates, pattern: str) -> np.ndarray:
    return pc.match_substring_regex(made.table["meta"], pattern).fill_null(False).to_numpy()


def parted_early(made: Candidates) -> np.ndarray:
    """A response of more than one turn of the assistant: the conversations part before their last one."""
    cuts, roles, _ = _turns(made.cells)
    several = _any(cuts, pc.equal(roles, "user").to_numpy(zero_copy_only=False))
    return several[made.side("chosen")] | several[made.side("rejected")]


def long(made: Candidates) -> np.ndarray:
    """More than 100,000 characters on one side."""
    cuts, _, contents = _turns(made.cells)
    long = _any(cuts, pc.greater(pc.binary_length(contents), LONG_BYTES).to_numpy(zero_copy_only=False))
    return np.logical_or.reduce([long[made.side(name)] for name in SIDES])


LONG_BYTES = 100_000


def short(made: Candidates) -> np.ndarray:
    """A response of fewer than 30 characters."""
    cuts, _, contents = _turns(made.cells)
    short = _all(cuts, pc.less(pc.utf8_length(contents), 30).to_numpy(zero_copy_only=False))
    return short[made.side("chosen")] | short[made.side("rejected")]


def repetition(made: Candidates) -> np.ndarray:
    """A response of 60 words or more, fewer than three in ten of whose word 3-grams are different ones."""
    grams = shingles(texts_of(made.cells))
    counts = np.diff(grams.cuts)
    distinct = np.array([len(np.unique(grams.hashes[a:b])) for a, b in pairwise(grams.cuts)])
    looping = (counts >= 60) & (distinct < 0.3 * counts)
    return looping[made.side("chosen")] | looping[made.side("rejected")]


def mixed_scripts(made: Candidates) -> np.ndarray:
    """The prompt is mostly Latin letters and a response mostly not, or the other way round."""
    contents = texts_of(made.cells)
    all_chars = pc.utf8_length(contents).to_numpy(zero_copy_only=False)
    foreign = pc.binary_length(contents).to_numpy(zero_copy_only=False) - all_chars  # bytes beyond one a character
    script = np.where(
        all_chars < 40, 0, np.where(foreign > 0.5 * all_chars, 2, np.where(foreign < 0.1 * all_chars, 1, 0))
    )
    prompt, chosen, rejected = (script[made.side(name)] for name in SIDES)
    return ((prompt * chosen) == 2) | ((prompt * rejected) == 2)
