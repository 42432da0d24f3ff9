"""The card of a data set: README.md with the header that the Hub reads, licence, attribution, both ledgers, command."""

from __future__ import annotations

import re
import shlex

from prefkit.shards import Manifest
from prefkit.sources import get_source

NAME = "README.md"
STACK_EXCHANGE = ("stack-exchange-dump", "stack-exchange-paired")
ATTRIBUTION = """Stack Exchange text is CC BY-SA, by date of contribution 2.5, 3.0 or 4.0. Whoever shows or passes it on
has to name the site, link the question, show the authors' names and link their profiles, and share adaptations under
the same licence. The columns `licenses`, `urls` and `authors` hold what that needs, in the order prompt, chosen,
rejected: keep them with the text."""
TABLE = re.compile(r"(?i)/(posts|users|votes|postlinks)\.xml$")  # of a folder
BESIDE = re.compile(r"(?i)(^|[-/])(users|votes|postlinks)\.(xml|7z)$")  # tables that are read with a Posts beside them
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def card(manifest: Manifest) -> str:
    """The card as Markdown; it says nothing that depends on machine or time."""
    source = get_source(manifest.config["source"])
    of_stack_exchange = source.name in STACK_EXCHANGE
    rows = sum(c["rows"] for c in manifest.splits.values())
    size = next((name for limit, name in SIZES if rows < limit), "n>10M")
    suffix = "parquet" if manifest.config["format"] == "parquet" else "arrow"
    files = "\n".join(f"  - split: {name}\n    path: {name}/*.{suffix}" for name in manifest.splits)
    splits = [(name, c["rows"], c["groups"]) for name, c in manifest.splits.items()]
    inputs = [(i["name"], i["bytes"], i["sha256"]) for i in manifest.inputs]
    found = {"Repairs": manifest.repairs, "Flags": manifest.flags, "Links": manifest.links}
    found |= {name.capitalize(): counts for name, counts in manifest.tables.items()}
    parts = [
        f"---\nlicense: {'cc-by-sa-4.0' if of_stack_exchange else 'other'}\nsize_categories:\n- {size}\n"
        f"tags:\n- preference\n- dpo\n- prefkit\nconfigs:\n- config_name: default\n  data_files:\n{files}\n---\n",
        f"# Preference pairs from {source.name}\n",
        f"{rows:,} pairs of a prompt, a chosen and a rejected response, made by prefkit "
        f"{manifest.tools.get('prefkit', '')} from {source.summary}.\n",
        _table("Splits", ("split", "pairs", "groups"), splits),
        "A group (a question with its duplicates, near duplicates and equal prompts) lies in one split, which follows "
        f"from the seed, {manifest.config['seed']}, and the group's name.\n",
        f"## Licence and attribution\n\n{ATTRIBUTION if of_stack_exchange else f'Licence: {source.licence}.'}\n",
        "## Where every record and every pair went\n",
        *(_ledger(name, ledgers) for name, ledgers in manifest.sources.items()),
        *(_table(title, ("what", "count"), sorted(counts.items())) for title, counts in found.items() if counts),
        f"## Command\n\n```sh\n{command(manifest)}\n```\n",
        _table("Inputs", ("file", "bytes", "sha256"), inputs),
    ]
    if manifest.warnings:
        parts.append("## Warnings\n\n" + "\n".join(f"- {_cell(w)}" for w in manifest.warnings) + "\n")
    return "\n".join(parts)


def command(manifest: Manifest) -> str:
    """The command line that makes this data set of the same inputs."""
    config = manifest.config
    words = ["prefkit", "convert", *_inputs(manifest), "--out", "DIR"]
    words += ["--source", config["source"], "--splits", ",".join(f"{n}={s:g}" for n, s in config["splits"].items())]
    words += ["--seed", str(config["seed"]), "--near", f"{config['near']:g}"]
    for name in ("where", "limit", "max_pairs"):
        words += [f"--{name.replace('_', '-')}", str(config[name])] if config[name] is not None else []
    words += ["--format", config["format"]] if config["format"] != "arrow" else []
    for name, severity in config["checks"].items():
        words += ["--check", f"{name}={severity}"]
    for name in dict.fromkeys(found["name"].partition("/")[0] for found in config["against"]):
        words += ["--against", name]
    words += ["--splits-from", "OLD"] if config["splits_from"] else []
    options = {k: v for k, v in config["options"].items() if v not in (None, getattr(_defaults(config["source"]), k))}
    for name, value in options.items():
        words += [f"--options.{name}", str(value)]
    return " ".join(shlex.quote(w) for w in words)


def _inputs(manifest: Manifest) -> list[str]:
    """What was given, of the names of the files it held: folders by theirs, a table's file without those beside it."""
    names = [i["name"] for i in manifest.inputs]
    if manifest.config["source"] == "stack-exchange-dump":
        alone = [n for n in names if not BESIDE.search(n) or TABLE.search(n)]
        return list(dict.fromkeys(TABLE.sub("", n) for n in alone))
    return list(dict.fromkeys(n.partition("/")[0] for n in names))


def _defaults(source: str) -> object:
    return get_source(source).options()


def _ledger(source: str, ledgers: dict) -> str:
    rows: list[tuple[object, ...]] = []
    for name in ("records", "candidates"):
        for fate, count in ledgers[name].items():
            total = sum(count.values()) if isinstance(count, dict) else count
            reasons = ", ".join(f"{n:,} {r}" for r, n in count.items()) if isinstance(count, dict) else ""
            rows.append((name, fate, total, reasons))
    return _table(source, ("ledger", "what became of them", "count", "reasons"), rows)


def _table(title: str, head: tuple[str, ...], rows: list) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(v) for v in row) + " |" for row in rows]
    return f"### {title}\n\n" + "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    """A value that breaks neither the table nor the page: names of files are anybody's."""
    text = f"{value:,}" if isinstance(value, int) else str(value)
    for mark, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "\\`"), ("\n", " ")):
        text = text.replace(mark, escaped)
    return text
