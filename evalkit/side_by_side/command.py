"""`evalkit side-by-side`: two files of answers on the blind A/B page, named only at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.terminal import say
from prefkit.errors import UserError
from prefkit.unseen import visible
from prefkit.web.options import Db, Host, Judge, Port, Seed, judge_name

if TYPE_CHECKING:
    from prefkit.web.session import Results


def side_by_side(
    a: Path,
    b: Path,
    *,
    db: Db,
    host: Host = "127.0.0.1",
    port: Port = 7861,
    judge: Judge = None,
    seed: Seed = 0,
) -> None:
    """Compare two models blind: which answered what is shown when the session ends.

    Parameters
    ----------
    a
        Answers of one model, from `evalkit generate`.
    b
        Answers of the other to the same prompts.
    """
    from evalkit.side_by_side.session import match, read_answers, results, store_items, tally
    from prefkit.judgements.database import without_password
    from prefkit.judgements.store import Store
    from prefkit.web.address import bind
    from prefkit.web.session import BlindSession

    matched = match(read_answers(a), read_answers(b))
    if not matched.different:
        raise UserError("nothing to judge: both models gave the same answers", b, "compare other models or prompts")
    who = judge_name(judge)
    listening = bind(host, port)
    store = Store(db)
    shown, alike = store_items(store, matched, "Side by side", seed)

    def score() -> Results:
        return results(tally(store, shown.batch_id, matched.names, alike.items), matched.names)

    from prefkit.web.run import serve_session  # seconds: only once nothing can be refused any more

    session = BlindSession(store, shown.batch_id, title="Side by side, blind", seed=seed, results=score)
    left_out = [f"{n} left out: {why}" for why, n in matched.left_out.items()]
    say(" · ".join([f"{shown.items} prompts to judge", f"{alike.items} identical, not shown", *left_out]))
    serve_session(session, who, listening, without_password(db))
    if session.is_over(who):
        found = session.end(who).results  # from here on the judge is not blind, and the store remembers it
        assert found is not None
        print_results(found)
    else:
        print("which model is which stays hidden until all are judged or you end the session on the page")
    store.close()
    print(f"next: prefkit convert {without_password(db)} --source judgements --out DIR")


def print_results(found: Results) -> None:
    """The reveal on the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for header in found.headers:
        table.add_column(header)
    for row in found.rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console = Console()
    console.print(table)
    for remark in found.remarks:
        console.print(visible(remark), markup=False, highlight=False)
