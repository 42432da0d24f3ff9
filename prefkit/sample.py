"""A small synthetic dump in the real Stack Exchange format: for demos and tests, learnable, and plainly not real.

The rule: a better answer names steps and reasons, a worse one brushes the question off. Within each question the longer
answer of a pair is as often the better as the worse, so length gives nothing away.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape
from itertools import combinations
from pathlib import Path

THINGS = {
    "bread": ("dough", "oven", "yeast", "flour"),
    "bicycle": ("chain", "brake", "tyre", "saddle"),
    "garden": ("soil", "hedge", "seed", "pond"),
    "radio": ("aerial", "dial", "speaker", "battery"),
    "boat": ("sail", "rudder", "anchor", "hull"),
    "clock": ("spring", "pendulum", "dial", "hand"),
}
TROUBLES = ("is stuck", "makes a noise", "has gone soft", "smells odd", "came loose", "is too cold", "leaks", "shakes")
ASKS = (
    "What can I do about it?",
    "How do I put it right?",
    "Has anybody seen this before?",
    "Where should I begin?",
    "Is there a good way to mend it?",
)
LEADS = (
    "It began last week.",
    "It worked well before.",
    "I have had it for a year.",
    "A friend gave it to me.",
    "It is quite old.",
)
# One clause of each list makes a sentence. Helpful and dismissive ones have the same numbers of words.
HELPFUL = (
    ("First", "To begin", "Next", "After that", "Then"),
    ("check", "clean", "measure", "loosen", "dry", "inspect"),
    ("because", "since", "so that", "as"),
    ("dirt blocks it", "damp swells it", "heat bends it", "wear thins it", "dust fills it"),
)
DISMISSIVE = (
    ("Well", "Who cares", "Whatever", "No idea", "Meh"),
    ("ignore", "forget", "google", "bin", "replace", "skip"),
    ("anyway", "maybe", "I guess", "though"),
    ("that is life", "others gave up", "it seems dull", "life is short", "who can tell"),
)
RULES = (HELPFUL, DISMISSIVE)
README = """# A synthetic Stack Exchange dump

Written by `prefkit sample`, seed {seed}. Nobody asked these questions and nobody gave these answers: they are put
together
from a few hundred words so that a tiny model can be trained and tested in minutes.

The rule to be learnt: an answer's votes follow its share of helpful sentences ("First check the dough, because …")
against dismissive ones ("Whatever, skip the dough …"). Within a question, long answers are as often worse as better.
The files have the form of the real dump (https://archive.org/details/stackexchange), with its oddities: BOM, CRLF,
entities, code, a table, math, ties, negative scores, an answer without its question, a deleted owner, tag wikis.
"""


@dataclass
class _Dump:
    """Rows so far, and the clock: everything is drawn from one generator, in one order."""

    rng: random.Random
    posts: list[dict[str, object]]
    votes: list[dict[str, object]]
    now: datetime

    def add(self, **row: object) -> int:
        """Append a post; returns its Id."""
        number = len(self.posts) + 1
        self.now += timedelta(minutes=self.rng.randint(1, 90))
        row = {"Id": number, **row}
        row.setdefault("CreationDate", _stamp(self.now))
        row |= {"LastActivityDate": row["CreationDate"], "CommentCount": 0, "ContentLicense": "CC BY-SA 4.0"}
        self.posts.append(row)
        return number

    def vote(self, post: int, score: int) -> None:
        """Up and down votes whose difference is the post's Score."""
        down = self.rng.choice((0, 0, 0, 1, 2)) if score >= 0 else -score + self.rng.choice((0, 1))
        for kind, count in ((2, score + down), (3, down)):
            for _ in range(count):
                self._cast(post, kind)

    def accept(self, post: int) -> None:
        """The asker's mark."""
        self._cast(post, 1)

    def _cast(self, post: int, kind: int) -> None:
        day = self.now.replace(hour=0, minute=0, second=0, microsecond=0)
        self.votes.append({"Id": len(self.votes) + 1, "PostId": post, "VoteTypeId": kind, "CreationDate": _stamp(day)})


def write_sample(folder: Path, questions: int = 600, seed: int = 0) -> dict[str, int]:
    """Write Posts, Votes, PostLinks and Users.xml and a README; returns rows by file. Deterministic."""
    dump = _Dump(random.Random(seed), [], [], datetime(2021, 3, 1))  # noqa: S311
    asked = [_question(dump, n) for n in range(questions)]
    _oddities(dump)
    links: list[dict[str, object]] = [
        {
            "Id": i + 1,
            "CreationDate": _stamp(dump.now),
            "PostId": b,
            "RelatedPostId": a,
            "LinkTypeId": 3 if i % 2 else 1,
        }
        for i, (a, b) in enumerate(zip(asked[::40], asked[7::40], strict=False))
    ]
    users: list[dict[str, object]] = [
        {"Id": n, "Reputation": 1 + 10 * n, "CreationDate": "2021-02-01T00:00:00.000", "DisplayName": f"made-up {n}"}
        for n in (-1, *range(1, 41))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    files = {"Posts.xml": dump.posts, "Votes.xml": dump.votes, "PostLinks.xml": links, "Users.xml": users}
    for name, rows in files.items():
        (folder / name).write_bytes(_xml(name.lower().removesuffix(".xml"), rows))
    (folder / "README.md").write_text(README.format(seed=seed), "utf-8")
    return {name: len(rows) for name, rows in files.items()}


def _question(dump: _Dump, number: int) -> int:
    rng = dump.rng
    thing = rng.choice(list(THINGS))
    part, trouble = rng.choice(THINGS[thing]), rng.choice(TROUBLES)
    title = f"The {part} of my {thing} {trouble} & nothing helps ({number + 1})"
    body = f"<p>The {part} of my {thing} {trouble}. {rng.choice(LEADS)} {rng.choice(ASKS)}</p>\n"
    asker = rng.randint(1, 40)
    question = dump.add(
        PostTypeId=1, Score=rng.randint(0, 9), ViewCount=rng.randint(20, 900), Body=body, OwnerUserId=asker, Title=title
    )
    dump.posts[-1] |= {"Tags": f"<{thing}><{part}>", "AnswerCount": 0}
    dump.vote(question, int(str(dump.posts[-1]["Score"])))
    grades = rng.sample((0, 1, 2, 3, 4), rng.choice((2, 3, 3, 4, 4, 4, 5, 5)))
    lengths = _lengths(rng, grades)
    answers = [(_answer(dump, question, part, g, n), g) for g, n in zip(grades, lengths, strict=True)]
    dump.posts[question - 1]["AnswerCount"] = len(answers)
    best, grade = max(answers, key=lambda a: a[1])
    if grade == 4 and rng.random() < 0.8:
        dump.posts[question - 1]["AcceptedAnswerId"] = best
        dump.accept(best)
    return question


def _lengths(rng: random.Random, grades: list[int]) -> list[int]:
    """Sentences of each answer, all different, such that in half of the pairs (give or take ½) the longer is better."""
    pairs = list(combinations(range(len(grades)), 2))
    wanted = rng.choice((len(pairs) // 2, (len(pairs) + 1) // 2))
    while True:
        lengths = rng.sample(range(2, 7), len(grades))
        if sum((grades[a] > grades[b]) == (lengths[a] > lengths[b]) for a, b in pairs) == wanted:
            return lengths


def _answer(dump: _Dump, question: int, part: str, grade: int, sentences: int) -> int:
    """One answer: `grade`/4 of its sentences are helpful, and its score follows the grade."""
    rng = dump.rng
    share = int(grade * sentences / 4 + rng.random())
    helpful = rng.sample([True] * share + [False] * (sentences - share), sentences)
    body = "<p>" + " ".join(_sentence(rng, part, h) for h in helpful) + "</p>\n"
    score = (rng.randint(-3, -1), 0, rng.randint(1, 1), rng.randint(3, 4), rng.randint(6, 20))[grade]
    owner = (
        {"OwnerUserId": rng.randint(1, 40)}
        if rng.random() > 0.02
        else {"OwnerDisplayName": f"user{rng.randint(900, 999)}"}
    )
    answer = dump.add(PostTypeId=2, ParentId=question, Score=score, Body=body, **owner)
    dump.vote(answer, score)
    return answer


def _sentence(rng: random.Random, part: str, helpful: bool) -> str:
    lead, act, link, reason = (rng.choice(words) for words in RULES[0 if helpful else 1])
    return f"{lead}, {act} the {part} {link} {reason}."


def _oddities(dump: _Dump) -> None:
    """What real dumps hold and a converter must survive: few rows, so that they teach a model nothing."""
    asker = {"OwnerDisplayName": "user1234"}
    question = dump.add(PostTypeId=1, Score=2, Body=RICH, Title='What does "x < y" mean?', **asker)
    for score, body in ((3, RICH), (3, "<p>A tie with the answer above.</p>\n"), (-2, "<p>Brûlée 🍮, déjà vu.</p>\n")):
        dump.vote(dump.add(PostTypeId=2, ParentId=question, Score=score, Body=body, OwnerUserId=3), score)
    dump.vote(question, 2)
    dump.add(PostTypeId=2, ParentId=999_999, Score=1, Body="<p>My question is gone.</p>\n", OwnerUserId=5)
    dump.vote(len(dump.posts), 1)
    dump.add(PostTypeId=5, Score=0, Body="<p>About bread.</p>\n", OwnerUserId=-1)
    dump.add(PostTypeId=4, Score=0, Body="", OwnerUserId=-1)
    dump.add(PostTypeId=1, Score=0, Body="<p>Nobody answered this.</p>\n", Title="Is anybody there?", OwnerUserId=9)


RICH = """<p>Is 10<sup>5</sup> &lt; 2<sup>20</sup>, or \\(x_1 &lt; y^2\\)? See <a href="/questions/1">this</a> &amp;
<code>a_b</code>:</p> <pre class="lang-python prettyprint-override"><code>if x &lt; 1:
    print("\\(x\\)")
</code></pre>
<table><thead><tr><th>x</th><th>y</th></tr></thead><tbody><tr><td>1</td><td>$y_1$</td></tr></tbody></table>
<blockquote class="spoiler"><p>It was the yeast.</p></blockquote>
"""


def _stamp(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{when.microsecond // 1000:03d}"


def _xml(root: str, rows: list[dict[str, object]]) -> bytes:
    """The form of the dump: BOM, CRLF, one self-closing row a line, line ends in text as references."""
    lines = ['\ufeff<?xml version="1.0" encoding="utf-8"?>', f"<{root}>"]
    for row in rows:
        attributes = " ".join(f'{k}="{escape(str(v)).replace(chr(10), "&#xA;")}"' for k, v in row.items())
        lines.append(f"  <row {attributes} />")
    return ("\r\n".join([*lines, f"</{root}>"])).encode()
