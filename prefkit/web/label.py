"""`prefkit label`: pairs of a data set, or of a JSON lines file, on the blind A/B page."""

from __future__ import annotations

from pathlib import Path

from prefkit.errors import UserError
from prefkit.web.options import Db, Host, Judge, Port, Seed, judge_name
from prefkit.wording import counted


def label(
    data: Path,
    /,
    *,
    db: Db,
    split: str | None = None,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    judge: Judge = None,
    seed: Seed = 0,
    limit: int | None = None,
) -> None:
    """Label pairs in the browser, blind and by keyboard.

    Parameters
    ----------
    data
        A data set made by `prefkit convert`, or JSON lines {prompt, responses: [two]}.
    split
        Which split of a data set to label; by default train.
    limit
        Label only so many pairs.
    """
    from prefkit.judgements.database import without_password
    from prefkit.judgements.drafts import drafts_of_file, drafts_of_pairs
    from prefkit.judgements.store import Store
    from prefkit.web.address import bind
    from prefkit.web.session import BlindSession

    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} leaves nothing to judge", fix="give a number from 1 up")
    if data.is_dir():
        from prefkit.shards import open_pairs

        drafts = drafts_of_pairs(open_pairs(data, split or "train"), limit=limit, seed=seed)
    elif data.exists() and split is not None:
        raise UserError("a file has no splits", data, "leave --split out")
    elif data.exists():
        drafts = drafts_of_file(data, limit=limit, seed=seed)
    else:
        raise UserError("no such data set or file", data, "make one with `prefkit convert`")
    if not drafts.items:
        raise UserError("nothing to judge", data, f"look at it with `prefkit show {data}`")
    who = judge_name(judge)
    listening = bind(host, port)
    store = Store(db)
    added = store.add_batch("labels", data.name, drafts.items, {"seed": seed})
    session = BlindSession(store, added.batch_id, title="Labelling", seed=seed)  # a file's name may say who wrote it

    from prefkit.web.run import serve_session  # seconds: only once nothing can be refused any more

    left_out = dict(drafts.left_out)
    if len(drafts.items) > added.items:
        left_out["same prompt and responses"] = len(drafts.items) - added.items
    reasons = "".join(f" · {n} left out: {why}" for why, n in left_out.items())
    print(f"{data.name}: {counted(added.items, 'pair')} to judge{reasons}")
    serve_session(session, who, listening, without_password(db))
    store.close()
    print(f"next: prefkit convert {without_password(db)} --source judgements --out DIR")
