"""What is wrong with a command line, as one line: what, and what to write instead; cyclopts speaks of its own types."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from cyclopts import (
    App,
    ArgumentCollection,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from prefkit.errors import UserError
from prefkit.wording import TYPES


def mistake(e: CycloptsError) -> Exception:
    """The same mistake in our words; what is not one of the usual ones stays as it is."""
    e.verbose = False
    if isinstance(e, UnknownOptionError):
        return _unknown_option(e)
    if isinstance(e, UnusedCliTokensError):
        return _unused(e.unused_tokens or [], e.root_input_tokens or [])
    if isinstance(e, MissingArgumentError) and e.keyword:
        value = "PATH" if e.argument is not None and "Path" in str(e.argument.hint) else "VALUE"
        return UserError(f"{e.keyword} has no value", fix=f"write {e.keyword} {value}")
    if isinstance(e, CoercionError) and e.token is not None and e.argument is not None:
        what = f"{e.token.keyword or e.argument.name} is {e.token.value!r}"
        where = e.token.source if e.token.source not in ("", "cli") else ""
        if _takes_keys(e.argument):
            return UserError(what, where, f"write {e.argument.name}.NAME VALUE for each")
        if (must := TYPES.get(getattr(e.target_type, "__name__", ""))) is not None:
            return UserError(what, where, f"it must be {must}")
    return e


def whole_numbers(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """cyclopts configuration hook: refuse 1.5 where a whole number is asked for; cyclopts itself would round it."""
    for argument in arguments:
        for token in argument.tokens if argument.hint in (int, int | None) else ():
            if "." in token.value and token.value.partition(".")[2].strip("0"):
                where = token.source if token.source not in ("", "cli") else ""
                what = f"{token.keyword or argument.name} is {token.value!r}"
                raise UserError(what, where, f"it must be {TYPES['int']}")


def _unknown_option(e: UnknownOptionError) -> UserError:
    """Named, with the nearest option, or the form in which a free section such as --trainer would take it."""
    name = (e.token.keyword or e.token.value).partition("=")[0]
    if name.startswith("["):  # of a file: [dpo][bta]
        name = "--" + name.strip("[]").replace("][", ".")
    known = [n for a in e.argument_collection for n in a.names if a.parse]
    tails = {n.lstrip("-").rpartition(".")[2]: n for n in known}  # --beta is --dpo.beta
    near = [tails[t] for t in get_close_matches(name.lstrip("-"), tails, n=1, cutoff=0.75)]
    if not near:
        free = [f"{a.name}.{name.lstrip('-')}" for a in e.argument_collection if "." not in name and _takes_keys(a)]
        near = free + get_close_matches(name, known, n=1)
    source = "" if e.token.source == "cli" else e.token.source
    return UserError(f"unknown option {name}", source, f"did you mean {' or '.join(near)}?" if near else "see --help")


def _unused(tokens: list[str], given: list[str]) -> UserError:
    """A word that nothing takes; most often the value of a switch, which takes none."""
    before = given[given.index(tokens[0]) - 1] if tokens[0] in given[1:] else ""
    if before.startswith("--") and "=" not in before:
        section, dot, name = before[2:].rpartition(".")
        other = f" or --{section}{dot}no-{name}" if not name.startswith("no-") else ""
        return UserError(f"{before} takes no value, {tokens[0]!r} is given", fix=f"write {before}{other}")
    return UserError(f"nothing takes {' '.join(tokens)!r}", fix="options begin with --, see --help")


def _takes_keys(argument: Any) -> bool:
    """Whether this is a section with names of the user's own: dict[str, str]."""
    return "dict[" in str(argument.hint)
