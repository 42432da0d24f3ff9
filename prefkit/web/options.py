"""What the commands that open a page have in common."""

from __future__ import annotations

import getpass
from typing import Annotated

from cyclopts import Parameter

from prefkit.errors import UserError

Db = Annotated[str, Parameter(help="Where judgements are kept: a file such as labels.db, or a database URL.")]
Host = Annotated[str, Parameter(help="Address to listen on; this machine only.")]
Port = Annotated[int, Parameter(help="Port of the page; 0 takes any free one.")]
Judge = Annotated[str | None, Parameter(help="Under which name to judge; by default the name of the account.")]
Seed = Annotated[int, Parameter(help="Fixes what comes first and which side it stands on.")]


def judge_name(given: str | None) -> str:
    """Under which name to judge: as given, or the account's; `UserError` where the account has none."""
    try:
        return given or getpass.getuser()
    except (KeyError, OSError):  # a number in a container
        raise UserError("this account has no name to judge under", fix="add --judge NAME") from None
