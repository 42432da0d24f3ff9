"""Inputs and outputs by URL: fetched once, uploaded with the manifest last, against a server that speaks S3."""

import errno
import hashlib
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from dumps import many, tree_digest, write_dump
from s3_server import serving

from prefkit import convert_dataset, remote
from prefkit.errors import UserError
from prefkit.plan import Settings
from prefkit.shards import verify


@pytest.fixture(scope="module")
def bucket():
    """A bucket on a local server, as URLs: bucket("path") → s3://…"""
    with serving() as (address, objects), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "none")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "none")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        query = f"scheme=http&endpoint_override={address}&region=us-east-1"
        yield lambda path: f"s3://bucket/{path}?{query}"
        assert len(objects) > 5


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFKIT_CACHE", str(tmp_path / "cache"))


def upload(folder, url):
    fs, path = remote._open(url)
    for file in folder.rglob("*"):
        if file.is_file():
            fs.makedirs(f"{path}/{file.relative_to(folder)}".rpartition("/")[0], exist_ok=True)
            fs.put_file(str(file), f"{path}/{file.relative_to(folder).as_posix()}")


def download(url, folder):
    fs, path = remote._open(url)
    for file in fs.find(path):
        place = folder / file[len(path) :].lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(file, str(place))
    return folder


def places(tmp_path, kind, request):
    if kind == "s3":
        return request.getfixturevalue("bucket")
    return lambda path: f"file://{tmp_path}/remote/{path}"


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_there_and_back(tmp_path, request, kind):
    url = places(tmp_path, kind, request)
    folder = write_dump(tmp_path / "beer.stackexchange.com", many(30), [(1, 6)])
    upload(folder, url("dumps/beer.stackexchange.com"))
    convert_dataset(folder, tmp_path / "local")
    convert_dataset(url("dumps/beer.stackexchange.com"), url("sets/beer"))
    back = download(url("sets/beer"), tmp_path / "back")
    assert tree_digest(back) == tree_digest(tmp_path / "local")
    assert verify(back) == []
    with pytest.raises(UserError, match="already holds a data set"):
        convert_dataset(folder, url("sets/beer"))
    with pytest.raises(UserError, match="no such file"):
        convert_dataset(url("dumps/nothing"), tmp_path / "no")


def test_an_upload_that_stops_leaves_no_manifest_and_goes_on(tmp_path, monkeypatch):
    folder, url = write_dump(tmp_path / "in", many(20)), f"file://{tmp_path}/out"
    fs, _ = remote._open(url)
    put, left = type(fs).put_file, 3

    def put_some(self, *names, **more):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError("the line is dead")
        return put(self, *names, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "put_file", put_some)
        with pytest.raises(UserError, match="the line is dead"):
            convert_dataset(folder, url)
    assert not (tmp_path / "out/manifest.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(remote.Manifest, "write", lambda *_: 1 / 0)  # what was converted is not converted again
        convert_dataset(folder, url)
    assert verify(tmp_path / "out") == []


def test_an_input_that_has_not_changed_is_fetched_once(tmp_path, monkeypatch):
    folder = write_dump(tmp_path / "in", many(5))
    (first,) = remote.local_copies(f"file://{folder}")
    fs, _ = remote._open(f"file://{folder}")
    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "get_file", lambda *_, **__: 1 / 0)
        assert remote.local_copies([f"file://{folder}"]) == [first]
    (folder / "Posts.xml").write_bytes((folder / "Posts.xml").read_bytes() + b" ")
    assert remote.local_copies([f"file://{folder}"]) != [first]


@pytest.mark.parametrize("url", ["nonsense://x/y", "s3://"])
def test_addresses_that_are_none(tmp_path, url):
    with pytest.raises(UserError):
        convert_dataset(url, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@contextmanager
def web(files, cut=0):
    """A web server: path → bytes, each answer without its last `cut` bytes; yields its address and how it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = files.get(self.path)
            status = 404 if body is None else 403 if body == b"secret" else 200
            self.send_response(status)
            self.send_header("Content-Length", str(len(body or b"")))
            self.send_header("ETag", f'"{hashlib.md5(body or b"").hexdigest()}"')
            self.end_headers()
            self.wfile.write((body or b"")[: len(body or b"") - cut])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


ROWS = b"".join(b'{"prompt": "p%d", "chosen": "c%d", "rejected": "r"}\n' % (i, i) for i in range(20))


def test_a_web_address_needs_no_library_and_is_fetched_again_when_it_changed(tmp_path, monkeypatch):
    for name in ("aiohttp", "requests"):  # as where nobody installed them
        monkeypatch.setitem(sys.modules, name, None)
    files = {"/a%20b/rows.jsonl?key=1": ROWS}
    with web(files) as (address, _):
        url = f"{address}/a b/rows.jsonl?key=1"
        first = convert_dataset(url, tmp_path / "first")
        files["/a%20b/rows.jsonl?key=1"] = ROWS.replace(b"p", b"q")  # of the same size
        second = convert_dataset(url, tmp_path / "second")
    assert [i["name"] for i in first.inputs] == ["rows.jsonl"]
    assert first.inputs[0]["sha256"] == hashlib.sha256(ROWS).hexdigest() != second.inputs[0]["sha256"]
    assert sum(s["rows"] for s in first.splits.values()) == 20


def test_a_download_that_breaks_off_is_no_file(tmp_path):
    with web({"/rows.jsonl": ROWS}, cut=100) as (address, _):
        for _ in range(2):  # nothing that was left behind is taken for the file
            with pytest.raises(
                UserError, match=f"cannot reach it: the transfer broke off after .* of {len(ROWS):,} bytes"
            ):
                convert_dataset(f"{address}/rows.jsonl", tmp_path / "out")


def test_what_the_web_says_is_what_the_user_reads(tmp_path):
    with web({"/secret.jsonl": b"secret"}) as (address, _):
        for url, words in {
            f"{address}/none.jsonl": "no such file or folder",
            f"{address}/secret.jsonl": "cannot reach it: HTTP Error 403",
            "http://127.0.0.1:9/rows.jsonl": "cannot reach it: .*refused",
            "https://[::1/x": "no such address",
            "nonsense://x/y": "no such address",
        }.items():
            with pytest.raises(UserError, match=words) as e:
                convert_dataset(url, tmp_path / "out")
            assert "install" not in str(e.value)
    with pytest.raises(UserError, match="nothing can be written to a web address"):
        convert_dataset(tmp_path, f"{address}/out")


def rows_of(n, answer="c"):
    return b"".join(
        b'{"prompt": "p%d", "chosen": "%s%d", "rejected": "r"}\n' % (i, answer.encode(), i) for i in range(n)
    )


def test_an_upload_that_stopped_is_made_anew_where_the_input_changed(tmp_path):
    rows, url = tmp_path / "rows.jsonl", f"file://{tmp_path}/out"
    rows.write_bytes(rows_of(20))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train").touch()  # no folder can be made there
    with pytest.raises(UserError, match="not empty, it holds train"):
        convert_dataset(rows, url)
    (tmp_path / "out/train").unlink()
    local = remote._room("outputs", f"{url}\n{(rows, Settings())!r}") / "data"
    convert_dataset(rows, local)  # as if the upload had stopped at once
    rows.write_bytes(rows_of(10, "other"))
    manifest = convert_dataset(rows, url)
    assert sum(s["rows"] for s in manifest.splits.values()) == 10
    assert verify(tmp_path / "out") == []
    assert not local.exists()


def test_what_another_upload_left_is_not_mixed_in(tmp_path):
    rows, url = tmp_path / "rows.jsonl", f"file://{tmp_path}/out"
    rows.write_bytes(rows_of(20))
    local = remote._room("outputs", f"{url}\n{(rows, Settings())!r}") / "data"
    convert_dataset(rows, local)
    (tmp_path / "out/train").mkdir(parents=True)
    (tmp_path / "out/train/data-00000-of-00009.parquet").touch()
    with pytest.raises(UserError, match=r"not empty, it holds train/data-00000-of-00009\.parquet"):
        convert_dataset(rows, url)
    (tmp_path / "out/train/data-00000-of-00009.parquet").unlink()
    convert_dataset(rows, url)
    assert verify(tmp_path / "out") == []
    assert not local.exists()  # it was this that went on


def test_evaluation_sets_and_older_data_sets_by_url(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(rows_of(20))
    convert_dataset(rows, tmp_path / "older")
    given = {"against": [f"file://{rows}"], "splits_from": f"file://{tmp_path}/older"}
    far = convert_dataset(rows, tmp_path / "far", **given)
    near = convert_dataset(rows, tmp_path / "near", against=[rows], splits_from=tmp_path / "older")
    assert (far.config, far.splits) == (near.config, near.splits)


def test_a_full_disk_is_said_as_such(tmp_path):
    with pytest.raises(UserError, match=r"cannot write: .*No space left.*make room"), remote._reachable("s3://x"):
        raise OSError(errno.ENOSPC, "No space left on device")
