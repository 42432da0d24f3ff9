"""7z as a stream; whatever damage, a `UserError`."""

import random

import py7zr
import pytest
from dumps import many, xml

from prefkit import archives, convert_dataset, open_pairs
from prefkit.errors import UserError
from prefkit.sources.dump_map import NO_LINKS


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("7z")
    (folder / "posts.XML").write_bytes(xml(many(80)))
    (folder / "Users.xml").write_bytes(xml([{"Id": i, "DisplayName": f"n{i}"} for i in range(500)], "users"))
    path = folder / "beer.stackexchange.com.7z"
    with py7zr.SevenZipFile(path, "w") as out:
        for name in ("Users.xml", "posts.XML"):
            out.write(folder / name, name)
    return path


def test_it_streams(archive, tmp_path):
    manifest = convert_dataset(archive, tmp_path / "out")
    assert open_pairs(tmp_path / "out").num_rows > 100
    assert manifest.warnings == [f"{NO_LINKS} (1 of the inputs: {archive.name})"]
    assert open_pairs(tmp_path / "out")["subset"][0].as_py() == "beer"


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_is_one_line_or_none(archive, tmp_path, seed):
    rng = random.Random(seed)
    content = bytearray(archive.read_bytes())
    if seed % 2:
        content = content[: rng.randrange(len(content))]
    else:
        start = rng.randrange(len(content) - 40) if seed % 4 else rng.randrange(40)
        content[start : start + 20] = rng.randbytes(20)
    path = tmp_path / "beer.stackexchange.com.7z"
    path.write_bytes(content)
    with pytest.raises(UserError):
        convert_dataset(path, tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


def test_two_sites_in_one_archive_are_refused(tmp_path):
    with py7zr.SevenZipFile(tmp_path / "beer.7z", "w") as out:
        for name in ("a/Posts.xml", "b/Posts.xml"):
            out.writestr(xml(many(2)), name)
    with pytest.raises(UserError, match=r"holds a/Posts\.xml, b/Posts\.xml"):
        convert_dataset(tmp_path / "beer.7z", tmp_path / "out")


@pytest.mark.parametrize("hidden", [False, True])
def test_a_password_is_asked_for_in_one_line(tmp_path, hidden):
    with py7zr.SevenZipFile(tmp_path / "beer.7z", "w", password="secret", header_encryption=hidden) as out:
        out.writestr(xml(many(2)), "Posts.xml")
    with pytest.raises(UserError, match="wants a password"):
        convert_dataset(tmp_path / "beer.7z", tmp_path / "out")


def test_a_failing_sink_is_not_blamed_on_the_archive(archive):
    def refuse(data):
        raise UserError("not this")

    with pytest.raises(UserError, match="not this"):
        archives.stream(archive, {"posts.XML": refuse})


@pytest.mark.parametrize("name", ["coffee.corrupted.7z", "coffee.rubbish.in.Posts.xml.7z"])
def test_damaged_archives_as_found(name, real_data, tmp_path):
    path = real_data / "stack-exchange/odd-archives/test/se-example-dir-9" / name
    with pytest.raises(UserError, match=r"cannot read the 7z|is no Posts\.xml"):
        convert_dataset(path, tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()
