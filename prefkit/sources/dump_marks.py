"""What a site wrote into its posts, and posts that nobody wrote: removed, counted, and links among it kept.

Until 2013 closing a question as a duplicate put a quote before its body, "Possible Duplicate:" and links; titles of
old copies end in "[closed]" (https://meta.stackexchange.com/q/10841).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

QUOTE = re.compile(
    r"\s*<blockquote>\s*<p>\s*<strong>\s*(?:Possible|Exact) Duplicates?:?\s*</strong>:?"
    r"((?:(?!</?blockquote).)*?)</p>\s*</blockquote>\s*",
    re.S | re.I,
)
LINKED = re.compile(r'<a href="(?:https?:)?(?://([^/"]+))?/q(?:uestions)?/(\d+)')
SUFFIX = re.compile(r"\s+\[(?:closed|duplicate|on hold|migrated|locked)\]\s*$")
# Canaries in every dump since 2025-06: 1000000001 and 1000000010 (https://meta.stackexchange.com/q/412018). A gap does
# not tell such an id from a real one, for real ids jump by 1,000 at a restart; but no site has come to a tenth of this.
DIGITS_OF_NO_ID = 10
COMMUNITY = "-1"  # the owner of wikis and advertisements; -2 is the Answer Bot, and no other is known below 0
OLD_META = re.compile(r"^meta\.(.+)\.stackexchange\.com$")


class Duplicate(NamedTuple):
    """A question that a body's quote links to; `host` is empty in a relative link."""

    host: str
    number: int


def without_quote(body: str, tally: Counter[str]) -> tuple[str, list[Duplicate]]:
    """A question's body without the quote of its possible duplicates, and what that links to.

    A quote without a link is somebody's own and stays.
    """
    found = QUOTE.match(body) if body.lstrip()[:11] == "<blockquote" else None
    linked = [Duplicate(host, int(number)) for host, number in LINKED.findall(found[1])] if found else []
    if found is None or not linked:
        return body, []
    tally["repairs.duplicate_quote"] += 1
    return body[found.end() :], linked


def is_same_site(host: str, site: str) -> bool:
    """Whether a link's host is the site's, in the old form of meta sites (meta.beer.…) or the new one (beer.meta.…)."""
    now, then = (OLD_META.sub(r"\1.meta.stackexchange.com", name) for name in (host, site))
    return not host or now == then


def without_suffix(title: str, tally: Counter[str]) -> str:
    """A title without "[closed]" and its like at the end."""
    if not title.endswith("]") or not (found := SUFFIX.search(title)):
        return title
    tally["repairs.title_suffix"] += 1
    return title[: found.start()]
