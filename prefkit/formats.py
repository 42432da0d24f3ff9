"""What responses are made of in Markdown: how many headings, lists, code blocks and the like each holds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.tables import offsets

# the rest of an opening line holds no backtick: ```x``` at a line's start is code within a line (CommonMark 4.5)
FENCE = r"(?ms)^[ \t]*(?:```[^`\n]*(?:\n.*?(?:^[ \t]*```|\z)|\z)|~~~.*?(?:^[ \t]*~~~|\z))"
FORMATS = {  # RE2 patterns; what stands in a fenced block counts as code alone: there `# words` is a remark
    "code block": FENCE,
    "inline code": r"`[^`\n]+`",
    "list": r"(?m)^[ \t]*(?:[-*+]|\d+[.)])\s",  # each item
    "heading": r"(?m)^#{1,6}\s",
    "bold": r"\*\*[^*\n]+\*\*",
    "link": r"\]\([^)\s]+",
    "table": r"(?m)^[ \t]*\|?[ \t]*:?-{3,}:?[ \t]*\|",
    "quotation": r"(?m)^>\s",
    "mathematics": r"\$[^$\n]+\$",
}


def format_counts(column: pa.ChunkedArray, names: tuple[str, ...] = tuple(FORMATS)) -> dict[str, np.ndarray]:
    """How many of each format the messages of each cell hold: int64[n] by name."""
    counts: dict[str, list[np.ndarray]] = {name: [np.zeros(0, np.int64)] for name in names}
    for chunk in column.chunks:
        texts, cuts = chunk.flatten().field(1), offsets(chunk)
        prose = pc.replace_substring_regex(texts, FENCE, "")
        for name in names:
            found = pc.count_substring_regex(texts if name == "code block" else prose, FORMATS[name])
            sums = np.concatenate([[0], np.cumsum(found.to_numpy(zero_copy_only=False), dtype=np.int64)])
            counts[name].append(sums[cuts[1:]] - sums[cuts[:-1]])
    return {name: np.concatenate(parts) for name, parts in counts.items()}
