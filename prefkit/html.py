"""Self-contained pages: one file, no request to anywhere, light and dark, printable, safe with hostile text.

Templates extend `prefkit/templates/page.html`; jinja2 escapes all they are given. The page's policy lets nothing run
but the script whose digest it names, so markup that slipped through would still be dead.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent / "templates"
# control characters, and those that turn the direction of text around
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)


def render(templates: Path, name: str, script: str = "", data: Any = None, **context: Any) -> str:
    """A page of a template in a folder; `script` is its only program and `data` what that program may read as JSON."""
    loader = ChoiceLoader([FileSystemLoader(templates), FileSystemLoader(HERE)])
    environment = Environment(
        autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["seen"] = visible
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    program = {"script": Markup(script), "script_digest": digest, "data": json_block(data)}  # noqa: S704 our own file
    return environment.get_template(name).render(**program, **context)


def visible(text: str) -> str:
    """Text whose unseen characters are written out as `‹U+202E›`, so that no line reads in another order than it is."""
    return UNSEEN.sub(lambda m: f"‹U+{ord(m[0]):04X}›", text)


def json_block(data: Any) -> Markup:
    """JSON for a `<script type="application/json">`: no character in it can end the block or open another."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 nothing of HTML is left in it
