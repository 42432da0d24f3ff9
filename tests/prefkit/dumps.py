"""Small dumps for tests, and a digest of what a conversion published."""

from __future__ import annotations

import hashlib
from html import escape
from pathlib import Path

BOM = "\ufeff"


def question(
    number: int, *, title: str = "", body: str = "", accepted: int | None = None, score: int = 1, **more
) -> dict:
    row = {"Id": number, "PostTypeId": 1, "Score": score, "Title": title or f"Question {number}?"}
    row |= {"Body": body or f"<p>Body of {number}.</p>\n", "CreationDate": "2019-05-01T10:00:00.123"}
    return row | ({"AcceptedAnswerId": accepted} if accepted else {}) | more


def answer(number: int, parent: int, score: int, *, body: str = "", **more) -> dict:
    row = {"Id": number, "PostTypeId": 2, "ParentId": parent, "Score": score}
    return row | {"Body": body or f"<p>Answer {number}.</p>\n", "CreationDate": "2019-05-02T10:00:00.123"} | more


def row_xml(row: dict) -> str:
    return "  <row " + " ".join(f'{k}="{escape(str(v)).replace(chr(10), "&#xA;")}"' for k, v in row.items()) + " />"


def xml(rows: list[dict | str], root: str = "posts", newline: str = "\r\n") -> bytes:
    lines = [f'{BOM}<?xml version="1.0" encoding="utf-8"?>', f"<{root}>"]
    lines += [r if isinstance(r, str) else row_xml(r) for r in rows]
    return newline.join([*lines, f"</{root}>"]).encode()


def write_dump(folder: Path, rows: list[dict | str], links: list[tuple[int, int]] = ()) -> Path:
    """A folder with Posts.xml and, where there are links, a PostLinks.xml of duplicates."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Posts.xml").write_bytes(xml(rows))
    if links:
        found = [{"Id": i, "PostId": a, "RelatedPostId": b, "LinkTypeId": 3} for i, (a, b) in enumerate(links)]
        (folder / "PostLinks.xml").write_bytes(xml(found, "postlinks"))
    return folder


def many(questions: int, answers: int = 4) -> list[dict]:
    """Questions with answers whose scores differ and repeat."""
    rows, number = [], 1
    for q in range(questions):
        parent, number = number, number + 1
        rows.append(question(parent, body=f"<p>{'long text ' * 40}{q}</p>\n"))
        for a in range(answers):
            rows.append(answer(number, parent, (a * 7 + q) % 9 - 1, body=f"<p>{'some words ' * 30}{number}</p>\n"))
            number += 1
    return rows


def tree_digest(folder: Path) -> dict[str, str]:
    """sha256 of every file but the log."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "_run.log"
    }
