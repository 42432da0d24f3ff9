"""The known defects and edge cases of Stack Exchange dumps, each with the smallest dump that has it."""

import json
from pathlib import Path

import py7zr
import pytest
from dumps import answer, many, question, write_dump, xml

from prefkit import convert_dataset, open_pairs, plan
from prefkit.errors import UserError
from prefkit.sources.dump_map import NO_LINKS

SITE = {"site": "beer"}
HOME = "https://beer.stackexchange.com"


def convert(tmp_path, rows, out="out", *, name="in", **arguments):
    arguments = {"splits": "train=1", "options": SITE} | arguments
    manifest = convert_dataset(write_dump(tmp_path / name, rows), tmp_path / out, **arguments)
    return manifest, open_pairs(tmp_path / out).to_pylist()


def trio(**of_question):
    return [question(1, **of_question), answer(2, 1, 5), answer(3, 1, 1)]


@pytest.mark.parametrize("tags", ["<ale><c++><.net>", "|ale|c++|.net|"])
def test_both_tag_syntaxes(tmp_path, tags):
    _, (pair,) = convert(tmp_path, trio(Tags=tags))
    assert json.loads(pair["meta"])["tags"] == ["ale", "c++", ".net"]


def test_an_accepted_answer_that_is_not_there_is_counted(tmp_path):
    manifest, (pair,) = convert(tmp_path, trio(accepted=99))
    assert manifest.links["accepted_missing"] == 1
    assert (pair["score_chosen"], pair["score_rejected"]) == (3, 1)


def test_missing_body_score_and_owner(tmp_path):
    rows = [*trio(), answer(4, 1, 2)]
    del rows[3]["Body"], rows[1]["CreationDate"]
    rows.append({k: v for k, v in answer(5, 1, 2).items() if k != "Score"})
    manifest, pairs = convert(tmp_path, rows)
    ledger = manifest.sources["stack-exchange-dump"]
    assert ledger["records"]["rejected"] == {"missing_number": 1}
    assert ledger["candidates"]["rejected"] == {"empty_chosen": 1, "empty_rejected": 1}
    assert pairs[0]["licenses"] == ["CC BY-SA 4.0", "CC BY-SA", "CC BY-SA 4.0"]
    assert pairs[0]["authors"] == ["", "", ""]


@pytest.mark.parametrize(
    ("date", "licence"),
    [("2011-04-07T23:59:59.997", "2.5"), ("2011-04-08T00:00:00.000", "3.0"), ("2018-05-01T23:59:59.997", "3.0"), ("2018-05-02T00:00:00.000", "4.0")],
)  # fmt: skip
def test_the_licence_follows_from_the_date(tmp_path, date, licence):
    rows = [*trio(CreationDate=date), answer(4, 1, 0, CreationDate=date, ContentLicense="CC BY-SA 2.0")]
    _, pairs = convert(tmp_path, rows)
    assert pairs[0]["licenses"][0] == f"CC BY-SA {licence}"
    assert {p["licenses"][2] for p in pairs if p["source_id"].endswith("-4")} == {
        "CC BY-SA 2.0"
    }  # what the row says wins


def test_wiki_self_answers_closed_questions_and_the_answer_bot(tmp_path):
    rows = [
        question(1, OwnerUserId=7, ClosedDate="2020-02-02T00:00:00.000"),
        answer(2, 1, 9, OwnerUserId=7),
        answer(3, 1, 4, OwnerUserId=8, CommunityOwnedDate="2020-01-01T00:00:00.000"),
        answer(4, 1, 0, OwnerUserId=-1),
        answer(5, 1, 50, OwnerUserId=-2),
    ]
    manifest, pairs = convert(tmp_path, rows)
    assert manifest.sources["stack-exchange-dump"]["records"]["unused"] == {"answer_bot": 1}
    flags = {p["source_id"].rpartition("/")[2]: p["flags"] for p in pairs}
    assert {k: [f for f in v if f in ("community_wiki", "self_answer")] for k, v in flags.items()} == {
        "2-3": ["community_wiki", "self_answer"],
        "2-4": ["self_answer"],
        "3-4": ["community_wiki"],
    }
    assert {json.loads(p["meta"])["closed"] for p in pairs} == {"2020-02-02T00:00:00.000"}
    _, pairs = convert(tmp_path, rows, "bot", options=SITE | {"keep_answer_bot": "true"})
    assert len(pairs) == 6


def with_tables(tmp_path, rows, users=(), votes=()):
    folder = write_dump(tmp_path / "in", rows)
    (folder / "users.xml").write_bytes(xml(list(users), "users"))
    (folder / "Votes.XML").write_bytes(xml(list(votes), "votes"))
    return folder


def test_names_and_votes_in_any_number_of_slices(tmp_path, monkeypatch):
    rows = many(60)
    for row in rows:
        row["OwnerUserId"] = row["Id"] % 50
    rows[1] |= {"OwnerDisplayName": "gone (1)"}
    del rows[1]["OwnerUserId"]
    users = [{"Id": i, "DisplayName": f"Ännie & {i} <x>", "AboutMe": "<p>me</p>"} for i in range(-1, 50) if i != 13]
    users += ['  <row Id="1000" DisplayName="broken ', {"Id": 1001}]
    votes, number = [], 0
    for row in rows:
        for kind, count in ((2, max(row["Score"], 0) + 1), (3, 1 + max(-row["Score"], 0)), (5, 1)):
            for _ in range(count):
                votes.append({"Id": (number := number + 1), "PostId": row["Id"], "VoteTypeId": kind})
    monkeypatch.setattr(plan, "SLICE_BYTES", 3_000)
    folder = with_tables(tmp_path, rows, users, votes)
    manifest = convert_dataset(folder, tmp_path / "out", splits="train=1", options=SITE)
    convert_dataset(folder, tmp_path / "two", splits="train=1", options=SITE, workers=2)
    assert open_pairs(tmp_path / "two").equals(open_pairs(tmp_path / "out"))
    posts = {row["Id"]: row for row in rows}
    for pair in open_pairs(tmp_path / "out").to_pylist():
        _, number, answers = pair["source_id"].split("/")
        meta = json.loads(pair["meta"])
        for author, post in zip(pair["authors"], (number, *answers.split("-")), strict=True):
            owner = posts[int(post)].get("OwnerUserId")
            profile = f"{HOME}/users/{owner}"
            assert author == (
                "gone (1)" if owner is None else profile if owner == 13 else f"Ännie & {owner} <x> ({profile})"
            )
        for side, post in zip(("chosen", "rejected"), answers.split("-"), strict=True):
            assert meta[f"up_{side}"] - meta[f"down_{side}"] == meta[f"votes_{side}"] == posts[int(post)]["Score"]
            assert meta[f"up_{side}"] >= 1
    assert manifest.sources["stack-exchange-dump"]["records"]["read"] == len(rows)  # only posts are records
    assert manifest.tables["users"] == {"damaged": 1, "names": 50, "nameless": 1}
    assert manifest.tables["votes"]["other_type"] == len(rows)


def test_tables_that_are_not_wanted_are_not_read(tmp_path):
    folder = with_tables(tmp_path, trio(OwnerUserId=7), [{"Id": 7, "DisplayName": "Ann"}])
    manifest = convert_dataset(
        folder, tmp_path / "out", options=SITE | {"users": "no", "votes": "no"}, splits="train=1"
    )
    assert [i["name"] for i in manifest.inputs] == ["in/Posts.xml"]
    assert open_pairs(tmp_path / "out")["authors"][0].as_py()[0] == f"{HOME}/users/7"


def pack(folder, name, tables):
    folder.mkdir(exist_ok=True)
    with py7zr.SevenZipFile(folder / name, "w") as out:
        for member, content in tables.items():
            out.writestr(content, member)
    return folder / name


def test_one_archive_a_table(tmp_path):
    """As Stack Overflow comes: the archives of other tables are found beside that of the posts."""
    rows = many(20)
    for row in rows:
        row["OwnerUserId"] = 7
    links = [{"Id": 1, "PostId": rows[0]["Id"], "RelatedPostId": rows[5]["Id"], "LinkTypeId": 3}]
    folder = tmp_path / "so"
    posts = pack(folder, "stackoverflow.com-Posts.7z", {"Posts.xml": xml(rows)})
    pack(folder, "stackoverflow.com-PostLinks.7z", {"PostLinks.xml": xml(links, "postlinks")})
    pack(folder, "stackoverflow.com-Users.7z", {"Users.xml": xml([{"Id": 7, "DisplayName": "Ann"}], "users")})
    pack(folder, "stackoverflow.com-Badges.7z", {"Badges.xml": b"nonsense"})
    manifest = convert_dataset(posts, tmp_path / "a", splits="train=1")
    convert_dataset(folder, tmp_path / "b", splits="train=1")
    assert open_pairs(tmp_path / "a").equals(open_pairs(tmp_path / "b"))
    first = open_pairs(tmp_path / "a").to_pylist()[0]
    assert first["subset"] == "stackoverflow"
    assert first["authors"][0] == "Ann (https://stackoverflow.com/users/7)"
    assert manifest.links == {"duplicates": 1}
    assert manifest.splits["train"]["groups"] == 19
    assert manifest.warnings == []
    with pytest.raises(UserError, match="alone makes no pairs"):
        convert_dataset(folder / "stackoverflow.com-Users.7z", tmp_path / "c")


def test_posts_alone_warn_that_no_links_are_known(tmp_path):
    posts = pack(tmp_path, "stackoverflow.com-Posts.7z", {"POSTS.XML": xml(many(3))})
    assert any(NO_LINKS in w for w in convert_dataset(posts, tmp_path / "out").warnings)


def test_a_bomb_of_entities_and_an_outside_one_stay_what_they_are(tmp_path):
    (tmp_path / "secret").write_text("SECRET")
    folder = write_dump(tmp_path / "in", [*trio(title="&lol3; &outside;")])
    prolog = f"""<!DOCTYPE posts [<!ENTITY lol "lol"><!ENTITY lol2 "{"&lol;" * 10}"><!ENTITY lol3 "{"&lol2;" * 10}">
      <!ENTITY outside SYSTEM "file://{tmp_path}/secret">]>"""
    content = (folder / "Posts.xml").read_text("utf-8-sig").replace("&amp;lol3; &amp;outside;", "&lol3; &outside;")
    (folder / "Posts.xml").write_text(content.replace("<posts>", prolog + "<posts>"))
    manifest = convert_dataset(folder, tmp_path / "out", options=SITE)
    assert manifest.sources["stack-exchange-dump"]["records"]["rejected"] == {"malformed_row": 1, "orphan_answer": 2}
    assert b"SECRET" not in b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())


@pytest.mark.parametrize(("option", "value"), [("score", "stars"), ("pairing", "some"), ("later_wins", "perhaps")])
def test_options_that_are_none(tmp_path, option, value):
    with pytest.raises(UserError):
        convert_dataset(write_dump(tmp_path / "in", trio()), tmp_path / "out", options={option: value})


def test_scores_and_pairings_of_choice(tmp_path):
    rows = [question(1, accepted=3), answer(2, 1, 40), answer(3, 1, 4), answer(4, 1, 4), answer(5, 1, -3)]
    _, pairs = convert(tmp_path, rows, "votes", options=SITE | {"score": "votes"})
    assert {(p["score_chosen"], p["score_rejected"]) for p in pairs} == {(40, 4), (40, -3), (4, -3)}
    _, pairs = convert(tmp_path, rows, "accepted", options=SITE | {"score": "accepted"})
    assert {p["source_id"] for p in pairs} == {f"beer/1/3-{n}" for n in (2, 4, 5)}
    manifest, pairs = convert(tmp_path, rows, "ends", options=SITE | {"pairing": "best-vs-worst"})
    assert [p["source_id"] for p in pairs] == ["beer/1/2-5"]
    assert manifest.sources["stack-exchange-dump"]["candidates"]["filtered"] == 5
    assert manifest.sources["stack-exchange-dump"]["records"]["unused"] == {"not_paired": 2}


def test_votes_of_a_later_snapshot_stand_for_those_of_an_earlier_one(tmp_path):
    """As for the posts: counted within a snapshot, never added up over two."""
    rows = [question(1), answer(2, 1, 9), answer(3, 1, 1)]
    for name, up in (("old", 3), ("new", 5)):
        (tmp_path / name).mkdir()
        votes = [{"Id": n, "PostId": 2, "VoteTypeId": 2} for n in range(1, up + 1)]
        votes += [{"Id": 90, "PostId": 3, "VoteTypeId": 3}] if name == "old" else []
        with_tables(tmp_path / name, rows, votes=votes)
    folders = [next(p for p in (tmp_path / name).iterdir()) for name in ("old", "new")]
    convert_dataset(folders, tmp_path / "out", options=SITE, splits="train=1")
    (pair,) = open_pairs(tmp_path / "out", "train").to_pylist()
    meta = json.loads(pair["meta"])
    assert (meta["up_chosen"], meta["down_rejected"]) == (5, 1)


def quote(*links, head="Possible Duplicate:", br="<br>"):
    lines = f"{br}\n  ".join(f'<a href="{link}">Another question</a>' for link in links)
    return f"<blockquote>\n  <p><strong>{head}</strong>{br}\n  {lines}  </p>\n</blockquote>\n\n"


@pytest.mark.parametrize(
    ("links", "joined"),
    [
        ([f"{HOME}/questions/11/what-is-it"], {11}),
        (["/questions/11/what-is-it", "//beer.stackexchange.com/q/21"], {11, 21}),
        (["https://cooking.stackexchange.com/questions/11/what-is-it"], set()),
    ],
)
def test_a_quote_of_a_possible_duplicate_is_a_link_and_no_words_of_the_asker(tmp_path, links, joined):
    rows = [question(n, body=f"<p>{n}</p>") for n in (1, 11, 21)]
    rows[0]["Body"] = (
        quote(*links, head="Possible Duplicates:" if links[1:] else "Possible Duplicate:") + "<p>Mine.</p>"
    )
    rows += [answer(n + k, n, 9 * k - 9) for n in (1, 11, 21) for k in (1, 2)]
    manifest, pairs = convert(tmp_path, rows)
    groups = {int(p["source_id"].split("/")[1]): p["group_id"] for p in pairs}
    assert {n for n in (11, 21) if groups[n] == groups[1]} == joined
    assert {p["prompt"][0]["content"] for p in pairs} >= {"Question 1?\n\nMine."}
    assert manifest.repairs == {"duplicate_quote": 1}
    elsewhere = sum("cooking" in link for link in links)
    assert manifest.links.get("quoted_duplicates", 0) == len(links) - elsewhere
    assert manifest.links.get("quoted_other_site", 0) == elsewhere


@pytest.mark.parametrize(
    "own",
    [
        quote("https://en.wikipedia.org/wiki/Beer"),
        "<blockquote><p><strong>Possible Duplicate:</strong> I saw that one, but…</p></blockquote>",
        '<blockquote><p><strong>Possible Duplicate:</strong></p><ul><li><a href="/questions/11/x">x</a></li></ul>'
        "</blockquote><p>What I ask.</p><blockquote><p>Somebody said</p></blockquote>",
    ],
)
def test_a_quote_that_names_no_question_or_ends_otherwise_stays_whole(tmp_path, own):
    manifest, (pair,) = convert(tmp_path, trio(body=own + "<p>Mine.</p>"))
    text = pair["prompt"][0]["content"]
    assert "Possible Duplicate:" in text
    assert text.endswith("Mine.")
    assert ("What I ask." in text) == ("What I ask." in own)
    assert (manifest.repairs, manifest.links) == ({}, {})


def test_quotes_of_other_words_and_in_answers_stay(tmp_path):
    rows = trio(body=quote("/questions/9/x", head="Possible cause:") + "<p>b</p>")
    rows[1]["Body"] = quote("/questions/9/x")
    manifest, (pair,) = convert(tmp_path, rows)
    assert "Possible cause:" in pair["prompt"][0]["content"]
    assert "Possible Duplicate:" in pair["chosen"][0]["content"]
    assert (manifest.repairs, manifest.links) == ({}, {})


def test_old_and_new_names_of_a_meta_site_are_one_site(tmp_path):
    body = quote("http://meta.beer.stackexchange.com/questions/11/x", br="<br />") + "<p>b</p>"
    rows = [question(1, body=body), question(11), *(answer(n + k, n, 9 * k - 9) for n in (1, 11) for k in (1, 2))]
    _, pairs = convert(tmp_path, rows, options={"site": "beer.meta"})
    assert len({p["group_id"] for p in pairs}) == 1


@pytest.mark.parametrize("suffix", ["[closed]", "[duplicate]", "[on hold]", "[migrated]", "[locked]"])
def test_what_the_site_put_behind_a_title_goes(tmp_path, suffix):
    rows = [
        *trio(title=f"Why? {suffix}"),
        question(4, title="Merge [ale] and array[closed]"),
        answer(5, 4, 3),
        answer(6, 4, 0),
    ]
    manifest, pairs = convert(tmp_path, rows)
    titles = {p["prompt"][0]["content"].partition("\n")[0] for p in pairs}
    assert titles == {"Why?", "Merge [ale] and array[closed]"}
    assert manifest.repairs == {"title_suffix": 1}


def test_posts_that_nobody_wrote(tmp_path):
    """The two canaries of 2025-06, the same under other numbers and owners, and bots of other numbers."""
    canary = {"OwnerUserId": -1, "CreationDate": "2025-06-30T00:00:00.000"}
    lone = answer(1000000010, 1, 9) | canary
    del lone["ParentId"]
    others = [question(1000000002, OwnerUserId=7), answer(2000000011, 1, 9), answer(9, 1000000002, 3)]
    rows = [*trio(), question(1000000001) | canary, lone, *others, answer(8, 1, 9, OwnerUserId=-3)]
    manifest, pairs = convert(tmp_path, rows)
    assert [p["source_id"] for p in pairs] == ["beer/1/2-3"]
    records = manifest.sources["stack-exchange-dump"]["records"]
    assert records["unused"] == {"answer_bot": 1, "fabricated": 2}
    assert records["rejected"] == {"implausible_id": 2, "orphan_answer": 1}


def test_utf16_with_stray_spaces(tmp_path):
    """As one dump of spring 2024 came."""
    folder = write_dump(tmp_path / "beer.stackexchange.com", trio(title="Brûlée 🍮?"))
    text = (folder / "Posts.xml").read_bytes().decode("utf-8-sig").replace("<row", "\t <row").replace("/>", "/>  ")
    (folder / "Posts.xml").write_bytes(text.encode("utf-16"))
    manifest = convert_dataset(folder, tmp_path / "out", splits="train=1")
    (pair,) = open_pairs(tmp_path / "out").to_pylist()
    assert pair["prompt"][0]["content"].startswith("Brûlée 🍮?")
    assert manifest.sources["stack-exchange-dump"]["records"]["read"] == 3
    archive = pack(tmp_path, "beer.stackexchange.com.7z", {"Posts.xml": text.encode("utf-16")})
    assert convert_dataset(archive, tmp_path / "packed", splits="train=1").sources == manifest.sources
    assert open_pairs(tmp_path / "packed").to_pylist()[0]["prompt"] == pair["prompt"]


@pytest.mark.parametrize("mark", ["utf-16-le", "utf-16-be"])
def test_what_is_no_utf16_is_repaired_and_counted_by_row(tmp_path, mark):
    folder = write_dump(tmp_path / "beer.stackexchange.com", trio(title="Half % one, % two?"))
    text = (folder / "Posts.xml").read_bytes().decode("utf-8-sig")
    data = ("\ufeff" + text).encode(mark).replace("%".encode(mark), "\ud83c".encode(mark, "surrogatepass"))
    (folder / "Posts.xml").write_bytes(data + b"\n")  # an odd byte at the end
    manifest = convert_dataset(folder, tmp_path / "out", splits="train=1")
    (pair,) = open_pairs(tmp_path / "out").to_pylist()
    assert pair["prompt"][0]["content"].startswith("Half \ufffd")
    assert manifest.repairs == {"invalid_utf8": 1}


def test_repairs_in_the_tables_beside_the_posts_are_counted(tmp_path):
    names = [{"Id": 7, "DisplayName": "Ann"}, {"Id": 8, "DisplayName": "Bob"}]
    folder = with_tables(tmp_path, trio(OwnerUserId=7), names)
    users = folder / "users.xml"
    users.write_bytes(users.read_bytes().replace(b"Ann", b"A\xffn").replace(b"Bob", b"B&#x1;b"))
    manifest = convert_dataset(folder, tmp_path / "out", splits="train=1", options=SITE)
    assert manifest.repairs == {"illegal_character": 1, "invalid_utf8": 1}
    assert "A\ufffdn" in open_pairs(tmp_path / "out").to_pylist()[0]["authors"][0]


def test_accepted_answers_that_are_missing_are_counted_also_where_no_pair_is_made(tmp_path):
    posts = [
        question(1, AcceptedAnswerId=99),
        answer(2, 1, 5),
        question(3, AcceptedAnswerId=99),
        question(5),
        answer(6, 5, 5),
        answer(7, 5, 1),
    ]
    manifest, _ = convert(tmp_path, posts)
    assert manifest.links["accepted_missing"] == 2


def test_two_files_that_differ_in_case_alone_are_refused(tmp_path):
    folder = write_dump(tmp_path / "in", trio())
    (folder / "posts.xml").write_bytes((folder / "Posts.xml").read_bytes())
    with pytest.raises(UserError, match=r"Posts.xml and posts.xml in one folder"):
        convert_dataset(folder, tmp_path / "out")


def test_a_count_of_answers_is_not_believed(tmp_path):
    _, pairs = convert(tmp_path, trio(AnswerCount=7))
    assert len(pairs) == 1


def test_titles_are_plain_text_and_bodies_keep_their_code(tmp_path):
    rows = trio(
        title="Is &lt; less < than ?a=1&param=2", body="<p>Write <code>&amp;lt;</code>, not <code>&lt;b&gt;</code>.</p>"
    )
    _, (pair,) = convert(tmp_path, rows)
    assert pair["prompt"][0]["content"] == "Is &lt; less < than ?a=1&param=2\n\nWrite `&lt;`, not `<b>`."


def test_a_question_on_two_sites_is_one_group_and_sites_can_be_told_apart(tmp_path):
    words = " ".join(f"word{n}" for n in range(40))
    folders = []
    for host, extra in (("es.stackoverflow.com", "¿Qué?"), ("cooking.stackexchange.com", "Please?")):
        rows = [question(1, title="The same", body=f"<p>{words} {extra}</p>"), answer(2, 1, 5), answer(3, 1, 0)]
        folders.append(write_dump(tmp_path / host, rows))
    manifest = convert_dataset(folders, tmp_path / "out", splits="train=1")
    pairs = open_pairs(tmp_path / "out").to_pylist()
    assert {p["subset"] for p in pairs} == {"es.stackoverflow", "cooking"}
    assert len({p["group_id"] for p in pairs}) == 1
    assert manifest.links["near_duplicates"] == 1
    convert_dataset(folders, tmp_path / "one", splits="train=1", where="subset not like 'es.%'")
    assert [p["subset"] for p in open_pairs(tmp_path / "one").to_pylist()] == ["cooking"]


@pytest.mark.parametrize("number", range(1, 24))
def test_every_known_defect_has_a_row_in_the_documentation(number):
    page = (Path(__file__).parents[2] / "docs" / "convert.md").read_text("utf-8")
    table = page.partition("## What is wrong with dumps")[2].partition("\n## ")[0]
    assert f"\n| {number} | " in table


def test_a_site_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="'no such' is no site"):
        convert(tmp_path, trio(), options={"site": "no such"})
