"""Self-contained pages: one file, no request to anywhere, light and dark, printable, safe with hostile text.

Templates extend `prefkit/templates/page.html`; jinja2 escapes all they are given. The page's policy lets nothing run
but the script whose digest it names, so markup that slipped through would still be dead.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from prefkit.unseen import visible

HERE = Path(__file__).parent / "templates"


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


def json_block(data: Any) -> Markup:
    """JSON for a `<script type="application/json">`: no character in it can end the block or open another."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 nothing of HTML is left in it
