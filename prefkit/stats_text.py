"""A data set's numbers as lines for the terminal; `stats_page` draws the same."""

from __future__ import annotations

from collections.abc import Iterator

from prefkit.stats import QUANTILES, Share, Stats
from prefkit.wording import counted, counts_text


def lines(found: Stats) -> Iterator[str]:
    """What `prefkit stats` prints."""
    for split, counts in found.splits.items():
        subsets = ", ".join(f"{s or '-'} {n:,}" for s, n in found.subsets[split].items())
        yield f"{split:<10} {counted(counts['rows'], 'pair')}, {counted(counts['groups'], 'group')}: {subsets}"
    if found.scores:
        yield f"score gap  {', '.join(f'{gap}: {n:,}' for gap, n in found.scores.items())}"
    if found.margins:
        bins = (f"{i / 10:.1f} to {(i + 1) / 10:.1f}: {n:,}" for i, n in enumerate(found.margins) if n)
        beyond = [f"outside 0 to 1: {found.other_margins:,}"] if found.other_margins else []
        yield f"margin     {', '.join([*bins, *beyond])}"
    if found.chars:
        names = ("min" if q == 0 else "max" if q == 1 else f"{q:.0%}" for q in QUANTILES)
        yield "characters " + "".join(f"{name:>9}" for name in names)
        for name, values in found.chars.items():
            yield f"  {name:<9}" + "".join(f"{v:>9,}" for v in values)
    for subset, years in found.years.items():
        yield f"years      {subset or '-'} " + ", ".join(f"{year}: {n:,}" for year, n in years.items())
    if found.longer_wins is not None:
        yield f"longer     is chosen in {_share(found.longer_wins)} of pairs, equal lengths half"
        yield f"           chosen is longer than a rejected one of any prompt in {found.length_auc:.3f}"
    if found.length_margin is not None:
        yield f"           by how much goes with the margin by {found.length_margin:+.3f} (rank correlation)"
    for name, f in found.formats.items():
        if f.wins is not None:
            sides = f"{f.chosen:.1%} of chosen, {f.rejected:.1%} of rejected"
            yield f"{name:<12} {sides}; of {counted(f.n, 'pair')} with one, chosen has it in {_share(f.wins)}"
    if found.first_wins is not None:
        yield f"position   shown first won in {_share(found.first_wins)} of {found.first_wins.n_groups:,} judgements"
    if found.flags:
        yield f"flags      {counts_text(found.flags)}"
    yield f"rejects    {counts_text(found.rejects) if found.rejects else 'none'}"


def _share(share: Share) -> str:
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"
