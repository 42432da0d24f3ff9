"""`--where`: an SQL condition over the columns of a table, and its mistakes said in our words."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from prefkit.errors import UserError

if TYPE_CHECKING:
    import duckdb

KINDS = {  # what an SQL type is called in a message, by how it begins
    "VARCHAR": "text",
    "STRING": "text",
    "BOOL": "true or false",
    "DATE": "a date",
    "TIME": "a time",
    "STRUCT": "several values",
}
CLOCK = {  # written like columns, or said by DuckDB to be always alike
    *("current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"),
    *("current_localtime", "current_localtimestamp"),
}
SIGNS = {"~~": "LIKE", "!~~": "NOT LIKE"}


def rows_where(table: pa.Table, where: str) -> np.ndarray:
    """Numbers of the rows for which the condition is true, ascending; columns that begin with _ are not for it.

    UserError for what is no condition over these columns.
    """
    import duckdb

    columns = [c for c in table.column_names if not c.startswith("_")]
    numbered = table.select(columns).append_column("_row", pa.array(np.arange(table.num_rows)))
    with _database() as db:
        try:
            db.register("pairs", numbered)
            rows = db.execute(f"SELECT _row FROM pairs WHERE ({where}\n)").fetchnumpy()["_row"]  # noqa: S608
        except duckdb.Error as e:
            what, fix = said(str(e), where, columns)
            raise UserError(f"bad --where {where!r}: {what}", fix=fix) from None
    return np.sort(np.asarray(rows, dtype=np.int64))


def check_condition(where: str | None) -> None:
    """UserError unless the expression can be decided of each row alone, and always alike."""
    if where is None:
        return
    with _database() as db:
        tree, plain = (_tree(db, f"SELECT 1 WHERE ({text}\n)") for text in (where, "true"))
        unsteady = db.execute("SELECT function_name FROM duckdb_functions() WHERE stability != 'CONSISTENT'").fetchall()
    nodes = list(_nodes(tree))
    if "statements" in tree and _frame(tree) != _frame(plain):
        raise UserError(f"bad --where {where!r}: it is more than a condition", fix="close every bracket that it opens")
    if any(node.get("class") in ("SUBQUERY", "WINDOW") for node in nodes):
        raise UserError(f"bad --where {where!r}: it looks beyond its row", fix="leave out SELECT and OVER")
    called = {name for node in nodes if (name := node.get("function_name"))} & {*CLOCK, *(n for (n,) in unsteady)}
    called |= {"age" for node in nodes if node.get("function_name") == "age" and _arguments(node) == 1}  # until today
    called |= {name.lower() for node in nodes for name in node.get("column_names") or ()} & CLOCK
    if called:
        what = f"bad --where {where!r}: {', '.join(sorted(called))} differs from run to run"
        raise UserError(what, fix="use hash(id) for a sample, and dates written out")


def _arguments(call: dict) -> int:
    return len(call.get("arguments") or call.get("children") or ())


def _tree(db: duckdb.DuckDBPyConnection, sql: str) -> dict:
    """The statement as DuckDB reads it; without `statements` where it is none."""
    (text,) = db.execute("SELECT json_serialize_sql(?)", [sql]).fetchone() or ("{}",)
    return json.loads(text)


def _frame(tree: Any) -> Any:
    """All of a statement but its condition and the places in its text."""
    if isinstance(tree, dict):
        return {k: _frame(v) for k, v in tree.items() if k not in ("where_clause", "query_location")}
    return [_frame(v) for v in tree] if isinstance(tree, list) else tree


def _database() -> duckdb.DuckDBPyConnection:
    """In memory, on one thread, and without any way to files or the network."""
    import duckdb  # when asked for: it takes a twentieth of a second

    return duckdb.connect(config={"threads": 1, "enable_external_access": False})


def _nodes(tree: Any) -> Iterator[dict]:
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(child)


def said(message: str, where: str, columns: list[str]) -> tuple[str, str]:
    """What is wrong and what to do, of DuckDB's message about a condition."""
    if not where.strip():
        return "it is empty", f"an SQL condition over {', '.join(columns)}"
    for pattern, say in MESSAGES.items():
        if found := re.search(pattern, message, re.S):
            what, fix = say(found, where, columns)
            return what, fix or f"an SQL condition over {', '.join(columns)}"
    first = message.partition("\n")[0].partition("Error: ")[2] or message
    return " ".join(first.split()), f"an SQL condition over {', '.join(columns)}"


def _no_column(m: re.Match[str], where: str, columns: list[str]) -> tuple[str, str]:
    if f'"{m[1]}"' in where and not difflib.get_close_matches(m[1], columns, n=1):
        return f"no column {m[1]!r}", f"text stands in single quotes, '{m[1]}'; columns are {', '.join(columns)}"
    if m[1] == "group_id" and "group_key" in columns:
        return "group_id is known only afterwards", "use group_key, the source's own name of a group, such as beer/123"
    return f"no column {m[1]!r}", f"{_near(m[1], columns)}columns are {', '.join(columns)}"


def _no_field(m: re.Match[str], where: str, columns: list[str]) -> tuple[str, str]:
    names = re.findall(r'"(.+?)"', m[2])
    return f"no field {m[1]!r}", f"{_near(m[1], names)}fields are {', '.join(names)}"


def _no_function(m: re.Match[str], where: str, columns: list[str]) -> tuple[str, str]:
    return f"no function {m[1]!r}", f"did you mean {m[2]!r}?" if m[2] else "see duckdb.org/docs/sql/functions"


def _no_sql(m: re.Match[str], where: str, columns: list[str]) -> tuple[str, str]:
    if "LINE 2" in m.string:
        return "it ends too soon", "finish it, or close a bracket"
    return f"no SQL from {m[1]!r} on", ""


def _no_value(m: re.Match[str], where: str, columns: list[str]) -> tuple[str, str]:
    return f"{m[1]!r} is not {_kind(m[2])}", ""


def _no_match(m: re.Match[str], where: str, columns: list[str]) -> tuple[str, str]:
    return f"{_kind(m[1])} cannot be compared with {_kind(m[2])}", "text stands in single quotes, numbers without"


def _no_signature(m: re.Match[str], where: str, columns: list[str]) -> tuple[str, str]:
    return f"{SIGNS.get(m[1], m[1])} does not take {' and '.join(_kind(t) for t in m[2].split(', '))}", ""


def _unclosed(m: re.Match[str], where: str, columns: list[str]) -> tuple[str, str]:
    return "a quotation mark is not closed", ""


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def _kind(sql: str) -> str:
    """A number, unless the type's name begins like another."""
    if sql.endswith("]"):
        return "a list"
    return next((kind for start, kind in KINDS.items() if sql.startswith(start)), "a number")


MESSAGES: dict[str, Callable[[re.Match[str], str, list[str]], tuple[str, str]]] = {
    r'Referenced (?:column|table) "(.+?)" not found': _no_column,
    r'Could not find key "(.+?)" in struct(.*)': _no_field,
    r'Function with name (\S+) does not exist!(?:\s*Did you mean "(.+?)")?': _no_function,
    r'syntax error at or near "(.*?)"': _no_sql,
    r"unterminated quoted|unterminated string": _unclosed,
    r"Could not convert string '(.*?)' to (\w+)": _no_value,
    r"Cannot compare values of type (\S+) and type (\S+)": _no_match,
    r"given name and argument types '(\S+?)\((.*?)\)'": _no_signature,
}
