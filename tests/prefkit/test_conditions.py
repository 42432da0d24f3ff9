"""`--where`: the rows it leaves, and each usual mistake in one line of our words with what would mend it."""

import pyarrow as pa
import pytest

from prefkit.conditions import check_condition, rows_where
from prefkit.errors import UserError

TABLE = pa.table(
    {
        "margin": [0.1, 0.9, None],
        "subset": ["ale", "bock", "ale"],
        "count": pa.array([1, 2, 3], pa.int32()),
        "style": [{"bold": 1, "list": 0}] * 3,
        "_hidden": [1, 2, 3],
    }
)
COLUMNS = "columns are margin, subset, count, style"
OVER = "an SQL condition over margin, subset, count, style"


def test_rows_are_those_for_which_it_is_true():
    assert rows_where(TABLE, "subset = 'ale' AND count > 1").tolist() == [2]
    assert rows_where(TABLE, "margin < 1 -- a null is not true").tolist() == [0, 1]
    assert rows_where(TABLE, "style.bold = 1").tolist() == [0, 1, 2]
    assert rows_where(TABLE.slice(0, 0), "count > 1").tolist() == []


@pytest.mark.parametrize(
    "where",
    [
        "true) LIMIT (3",
        "true) ORDER BY (margin",
        "true) UNION SELECT 1 WHERE (true",
        "true) GROUP BY (margin",
        "true); SELECT (1",
    ],
)
def test_what_leaves_its_bracket_is_no_condition(where):
    with pytest.raises(UserError, match="it is more than a condition"):
        check_condition(where)


NOT_ALIKE = ["current_date", "CURRENT_TIMESTAMP", "localtime", "now()", "random()", "age(created)"]
NOT_ALIKE += ["current_localtime()", "current_localtimestamp()"]  # which DuckDB says are consistent


@pytest.mark.parametrize("name", NOT_ALIKE)
def test_neither_the_clock_nor_chance_decides(name):
    with pytest.raises(UserError, match="differs from run to run"):
        check_condition(f"subset = 'ale' and {name} is not null")
    check_condition("age(created, timestamp '2020-01-01') > interval 1 day")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("margn > 1", f"no column 'margn': did you mean 'margin'? {COLUMNS}"),
        ("p.margin > 1", f"no column 'p': {COLUMNS}"),
        ("_hidden = 1", f"no column '_hidden': {COLUMNS}"),
        ('subset = "lager"', f"no column 'lager': text stands in single quotes, 'lager'; {COLUMNS}"),
        ("style.bld > 1", "no field 'bld': did you mean 'bold'? fields are bold, list"),
        ("lenth(subset) > 1", "no function 'lenth': did you mean 'length'?"),
        ("qqqq(subset) > 1", "no function 'qqqq': "),
        ("margin >", "it ends too soon: finish it, or close a bracket"),
        ("(margin > 1", "it ends too soon: finish it, or close a bracket"),
        ("margin = = 1", f"no SQL from '=' on: {OVER}"),
        ("count > 1; DROP TABLE pairs", f"no SQL from ';' on: {OVER}"),
        ("subset = 'ale", f"a quotation mark is not closed: {OVER}"),
        ("margin > 'high'", f"'high' is not a number: {OVER}"),
        ("'ale'", f"'ale' is not true or false: {OVER}"),
        ("subset > 3", "text cannot be compared with a number: text stands in single quotes, numbers without"),
        ("count + subset > 1", f"+ does not take a number and text: {OVER}"),
        ("subset LIKE 3", f"LIKE does not take text and a number: {OVER}"),
        ("count(*) > 1", f"WHERE clause cannot contain aggregates!: {OVER}"),
        ("  ", f"it is empty: {OVER}"),
    ],
)
def test_mistakes_are_one_line_that_says_what_would_mend_them(where, message):
    check_condition(where)
    with pytest.raises(UserError) as e:
        rows_where(TABLE, where)
    assert str(e.value).startswith(f"bad --where {where!r}: {message}")
    assert not {"\n", "Error", "LINE 1", "Candidate"} & set(str(e.value).split(" "))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("where", ["count > (SELECT 1)", "row_number() OVER () = 1", "random() < .5", "now() > '2020'"])
def test_what_looks_beyond_its_row_or_differs_each_time_is_refused(where):
    with pytest.raises(UserError, match=r"looks beyond its row|differs from run to run"):
        check_condition(where)
