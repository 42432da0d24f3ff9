"""Sources by columns: what comes out is what the same rows make one by one, whatever they hold."""

import json
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dumps import tree_digest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit import convert_dataset, open_pairs, plan, readers, records
from prefkit.errors import UserError
from prefkit.sources import Slice, get_source, source_options
from prefkit.tables import cell_json, single_turns

NAMES = ("prompt", "chosen", "rejected")
WORDS = [
    "",
    "yes",
    "no",
    'say "x"\\\n\ty',
    "é漢😀\u2028",
    "\r\n",
    "\x00a",
    "a\x7f",
    '[{"role": "user"}]',
    ' [{"',
    "x" * 60,
]
TEXTS = st.one_of(st.sampled_from(WORDS), st.text(max_size=8).filter(str.isprintable))
LINKS = ["https://beer.stackexchange.com/questions/1", "https://a.b.com", "nothing", "", "https://x.com/users/3/\x01"]
LINKS += ["http://stackoverflow.com/questions/2\n", "https://meta.x.net/users/7/://questions/", "://", "/users/"]
IDS = {"int": (pa.int64(), st.integers(-(2**63), 2**63 - 1)), "text": (pa.string(), TEXTS)}
NUMBERS = st.one_of(
    st.floats(), st.integers(-(2**60), 2**60).map(float), st.sampled_from([0.0, 0.5, 1.0, 1e300, 16777217.0])
)


def some(values):
    return st.one_of(st.none(), values, values)


@st.composite
def paired(draw):
    kind, numbers = IDS[draw(st.sampled_from(list(IDS)))]
    fields = {
        "qid": (kind, some(numbers)),
        "question": (draw(st.sampled_from([pa.string(), pa.large_string()])), some(TEXTS)),
        "response_j": (pa.string(), some(TEXTS)),
        "response_k": (pa.string(), some(TEXTS)),
        "date": (pa.string(), some(st.sampled_from(["2019/01/02", "2019-13-40", "soon", "", "2020-02-30x"]))),
        "metadata": (pa.list_(pa.string()), some(st.lists(some(st.sampled_from(LINKS)), max_size=4))),
    }
    return draw(table(fields))


@st.composite
def plain(draw):
    kind, ids = IDS[draw(st.sampled_from(list(IDS)))]
    fields = {name: (pa.string(), some(TEXTS)) for name in ("prompt", "chosen", "rejected", "subset", "note")}
    fields |= {name: (kind, some(ids)) for name in ("id", "source_id", "set_id")}
    fields |= {name: (pa.float64(), some(NUMBERS)) for name in ("score_chosen", "score_rejected", "margin", "p_chosen")}
    fields |= {"system": (pa.string(), st.sampled_from([None, None, "", "Be brief."]))}
    fields |= {"weight": (pa.float64(), some(NUMBERS)), "good": (pa.bool_(), some(st.booleans()))}
    fields |= {"positions": (pa.list_(pa.string()), st.just(["elsewhere:1"]))}
    return draw(table(fields))


@st.composite
def table(draw, fields):
    """Rows of some of the fields; most of them repeat a row, as pairs of one question do."""
    left_out = draw(st.sets(st.sampled_from(sorted(fields)), max_size=2))
    kept = {n: f for n, f in fields.items() if n not in left_out}
    rows = draw(
        st.lists(st.fixed_dictionaries({n: values for n, (_, values) in kept.items()}), min_size=1, max_size=12)
    )
    return pa.Table.from_pylist(rows, pa.schema([(n, kind) for n, (kind, _) in kept.items()]))


def read_both_ways(path, name, given_options=None, limit=None):
    source = get_source(name)
    options, slices = source_options(source, given_options), [(Slice(path, path.name), 0)]
    made = []
    for way in (source, replace(source, to_columns=None)):
        tally = Counter()
        out = records.read(way, options, slices, limit, tally)
        assert out.candidates.table.schema == records.tables.CANDIDATES
        made.append(
            (out.candidates.spelled().to_pylist(), out.fates, out.rejects, {k: n for k, n in tally.items() if n})
        )
    return made


def as_known(row):
    return {k: repr(v) for k, v in row.items()}  # NaN equals itself


@pytest.mark.parametrize(("name", "tables"), [("stack-exchange-paired", paired()), ("pairs", plain())])
def test_columns_make_what_records_make(tmp_path_factory, name, tables):
    path = tmp_path_factory.mktemp("columns") / 'in "é".parquet'

    @settings(max_examples=300)
    @given(tables, st.one_of(st.none(), st.integers(1, 5)), st.integers(1, 9))
    def check(table, limit, group):
        pq.write_table(table, path, row_group_size=group)
        by_columns, one_by_one = read_both_ways(path, name, limit=limit)
        assert list(map(as_known, by_columns[0])) == list(map(as_known, one_by_one[0]))
        assert by_columns[1:] == one_by_one[1:]

    check()


def test_columns_take_what_is_sound():
    texts = pa.array(["a", "b\r", None, "d"])
    batch = pa.record_batch({"qid": [1, 2, 3, None], "question": texts, "response_j": texts, "response_k": texts})
    source = get_source("stack-exchange-paired")
    found = source.to_columns(batch, source_options(source, None))
    assert found.taken.tolist() == [True, False, False, False]
    strange = [("response_j", [1, 2, 3, 4]), ("metadata", ["https://x", "", "", ""]), ("date", [1, 2, 3, 4])]
    for name, values in strange:
        other = pa.record_batch({**{n: batch.column(n) for n in batch.schema.names}, name: pa.array(values)})
        assert source.to_columns(other, source_options(source, None)) is None


def test_names_and_columns_of_ones_own(tmp_path):
    path = tmp_path / "in.parquet"
    pq.write_table(
        pa.table({"q": ["why", "", None], "a": ["x", "y", "z"], "b": ["1", "2", "3"], "id": [7, 8, 9]}), path
    )
    by_columns, one_by_one = read_both_ways(
        path, "pairs", {"prompt": "q", "chosen": "a", "rejected": "b", "name": "mine\udc80"}
    )
    assert by_columns == one_by_one
    assert [r["source_id"] for r in by_columns[0]] == ["7"]
    assert len(by_columns[2]) == 2


@pytest.mark.parametrize("name", ["in.arrow", "in.parquet", "in.csv"])
def test_two_columns_of_one_name_are_refused(tmp_path, name):
    path, names = tmp_path / name, ["prompt", "chosen", "rejected", "rejected"]
    batch = pa.RecordBatch.from_arrays([pa.array([t]) for t in "pcrs"], names=names)
    if name == "in.arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as out:
            out.write_batch(batch)
    elif name == "in.parquet":
        pq.write_table(pa.Table.from_batches([batch]), path)
    else:
        path.write_text(",".join(names) + "\np,c,r,s\n")
    with pytest.raises(UserError, match="two columns are called 'rejected'"):
        convert_dataset(path, tmp_path / "out")


def test_string_views_are_read_one_by_one(tmp_path):
    """As polars writes them; Arrow cannot take rows of them."""
    columns = {n: pa.array([f"{n} {i}, of some length" for i in range(3000)], pa.string_view()) for n in NAMES}
    table = pa.table(columns)
    with pa.OSFile(str(tmp_path / "in.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    convert_dataset(tmp_path / "in.arrow", tmp_path / "out", splits="train=1")
    rows = {
        r["source_id"] or json.loads(r["meta"])["positions"][0]: r for r in open_pairs(tmp_path / "out").to_pylist()
    }
    assert rows["in.arrow:2718"]["chosen"][0]["content"] == "chosen 2717, of some length"
    assert len(rows) == 3000


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_an_arrow_file_is_read_in_parts(tmp_path, monkeypatch, new):
    table = pa.table({n: [f"{n} {i}, of some length" for i in range(900)] for n in NAMES})
    with pa.OSFile(str(tmp_path / "in.arrow"), "wb") as sink, new(sink, table.schema) as out:
        out.write_table(table, max_chunksize=100)
    whole = convert_dataset(tmp_path / "in.arrow", tmp_path / "whole")
    monkeypatch.setattr(plan, "SLICE_BYTES", 20_000)
    assert len(readers.pieces(tmp_path / "in.arrow", 20_000)) > 3
    parts = convert_dataset(tmp_path / "in.arrow", tmp_path / "parts", workers=2)
    assert (parts.sources, parts.splits) == (whole.sources, whole.splits)
    assert open_pairs(tmp_path / "parts").equals(open_pairs(tmp_path / "whole"))


@pytest.mark.parametrize("name", ["stack-exchange-paired", "pairs"])
def test_the_data_set_is_the_same(tmp_path, monkeypatch, name):
    texts = ["question", "response_j", "response_k"] if name != "pairs" else ["prompt", "chosen", "rejected"]
    rows = [
        {
            "qid": i // 3,
            texts[0]: f"how {i // 3}",
            texts[1]: f"so {i}" if i % 7 else None,
            texts[2]: f"not\r {i % 5}"[: 3 + i % 6],
        }
        for i in range(200)
    ]
    path = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=30)
    convert_dataset(path, tmp_path / "columns", source=name, workers=1)
    source = get_source(name)
    monkeypatch.setattr("prefkit.tasks.get_source", lambda _: replace(source, to_columns=None))
    convert_dataset(path, tmp_path / "records", source=name, workers=1)
    assert tree_digest(tmp_path / "columns") == tree_digest(tmp_path / "records")


@given(st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\n\t"))))
def test_json_of_clean_texts(texts):
    import json

    cells = single_turns(pa.array(["user"] * len(texts), pa.string()), pa.array(texts, pa.string()))
    assert [json.loads(c) for c in cell_json(cells)] == [[["user", t]] for t in texts]
    expected = [json.dumps([["user", t]], ensure_ascii=False, separators=(",", ":")).encode() for t in texts]
    assert cell_json(cells) == expected
