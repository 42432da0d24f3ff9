"""What the numbers beyond the accuracy say, in sentences; shared by report.md and report.html."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from evalkit.lines import interval
from evalkit.metrics import FEW_GROUPS
from evalkit.sections import listed
from prefkit.wording import counted

ONE_MORE = {"tokens": "token", "heading": "heading", "list": "list item", "bold": "bold span", "code": "code block"}

LOST = {
    "single_pairs": "pairs that share a set with no other",
    "sets_without_best": "sets in which every response is rejected by some pair",
    "sets_without_counterpart": "sets of Ties without their counterpart, of which accuracy alone counts",
}


def findings(r: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the numbers beyond the accuracy say, each a title and a sentence; shared by report.md and report.html."""
    said = ((title, sentence(r)) for title, sentence in FINDINGS.items())
    return ((title, text) for title, text in said if text)


def _labels(r: dict[str, Any]) -> str:
    if not (n := r["contrary_labels"]):
        return ""
    return (
        f"{n} pairs have p_chosen below ½, so most votes went to the rejected response: accuracy counts the chosen "
        "one as right all the same, calibration goes by the votes."
    )


def _undecided(r: dict[str, Any]) -> str:
    if not (u := r["undecided"]):
        return ""
    return (
        f"{u['n']} pairs ({u['share']:.1%}) have a log-ratio margin within the measured noise of "
        f"{u['within_nats']:.2g} nats; accuracy is between {u['low']:.3f} and {u['high']:.3f} however they fall."
    )


def _warnings(r: dict[str, Any]) -> str:
    return "".join(f"{w}. " for w in (r["run"] or {}).get("warnings", [])).strip()


def _noise(r: dict[str, Any]) -> str:
    run = r["run"] or {}
    unmeasured = run.get("noise") is None and run.get("asked", {}).get("noise")
    return "not measured: these models are always computed one response at a time." if unmeasured else ""


def _overlap(r: dict[str, Any]) -> str:
    if not (o := (r["run"] or {}).get("overlap")):
        return ""
    counts = f"of {o['prompts']} prompts, {o['exact']} were trained on exactly and {o['near']} nearly"
    known = f"{counts} (data set {o['run_data']})." if o["run_data"] else ""
    return known + (f" Not known: {o['unknown']}." if o.get("unknown") else "")


def _flips(r: dict[str, Any]) -> str:
    if not (f := r["flips"]):
        return ""
    text = (
        f"ranking by log π, {_half(f['kept_right'])} pairs were right and stayed so, {_half(f['won'])} won, "
        f"{_half(f['lost'])} lost, {_half(f['kept_wrong'])} stayed wrong."
    )
    if hard := f["reference_wrong"]:
        seen = f"{hard['reward']:.3f} are right by reward, {hard['ranking']:.3f} by log π"
        text += f" Of the {hard['n']} the reference ranks wrong, {seen}."
    return text


def _half(count: float) -> str:
    """A count to the half or quarter that ties make of it."""
    return f"{count:.2f}".rstrip("0").rstrip(".")


def _displacement(r: dict[str, Any]) -> str:
    if not (d := r["displacement"]):
        return ""
    chosen, rejected = (d["per_token"][side]["mean"] for side in ("chosen", "rejected"))
    return (
        f"the chosen response became less likely in {interval(d['chosen_fell'])} of pairs, both did in "
        f"{d['both_fell']:.3f}; {d['right_though_chosen_fell']:.3f} count as right all the same. Mean change a "
        f"token: chosen {chosen:+.4f}, rejected {rejected:+.4f} nats; drift {d['drift']:+.4f}."
    )


def _divided(r: dict[str, Any]) -> str:
    if not (i := r["idealised"]):
        return ""
    return (
        f"where they were not unanimous ({i['seen']['n']} pairs), a perfect optimiser at this β would rank "
        f"{interval(i['ideal'])} right by log π, this policy {interval(i['seen'])}."
    )


def _confidence(r: dict[str, Any]) -> str:
    risk, pooled = r["risk_coverage"], r["comparability"]
    half = next(p["accuracy"] for p in risk["curve"] if p["coverage"] == 0.5)
    return (
        f"the surer half is right in {half:.3f}; AURC {risk['aurc']:.4f}, {risk['aurc_random']:.4f} if margins knew "
        f"nothing. A chosen response beats a rejected one of any prompt in {pooled['auc']:.3f}; reward and mean "
        f"likelihood rank {pooled['agreement']:.3f} of pairs alike."
    )


def _calibration(r: dict[str, Any]) -> str:
    c = r["calibration"]
    if c["temperature"] is None:
        t = "no temperature would mend it, for on average margins do not point to the better response"
    else:
        t = f"best temperature {c['temperature']:.3g}" + ", for no margin is wrong" * (c["temperature"] == 0)
    after = "" if None in (c["temperature"], c["nll_after"]) else _after(c["nll_after"])
    note = "" if c["reliable"] else " Fewer than 300 pairs: the ECE is a sketch."
    return f"NLL {c['nll']:.4f}, Brier {c['brier']:.4f}, ECE {c['ece']:.4f}; {t}{after}.{note}"


def _after(nll: float) -> str:
    """What the fitted temperature comes to on pairs it was not fitted on; ½ for every pair has the NLL log 2."""
    return f" (NLL {nll:.4f} with it, cross-fitted" + ", no better than saying ½ of each" * (nll >= math.log(2)) + ")"


def _best_of_n(r: dict[str, Any]) -> str:
    if not (i := r["items"]):
        return ""
    sizes = [x["responses"] for x in i["sizes"]]
    text = f"{interval(i)} of {i['n']} sets have a best response on top, ties sharing the credit; guessing gives "
    text += f"{i['chance']:.3f}. Sets are of {sizes[0]}"
    text += f" to {sizes[-1]} responses, most often {i['usual_size']}" if len(sizes) > 1 else " responses each"
    if i["smaller"]:
        text += f"; {i['smaller']} hold fewer than that, made so or because one was too long or left out by a condition"
    text += "."
    lost = "; ".join(f"{i[key]} {what}" for key, what in LOST.items() if i.get(key))
    text += f" Left out: {lost}." if lost else ""
    if i["told_apart_by"] != "tokens":
        text += " Responses are told apart by reward and length alone, so equal ones count as one: score again."
    return text


def section_notes(w: dict[str, Any]) -> Iterator[str]:
    """What is missing from weighted sections, sentence by sentence."""
    if w["missing"]:
        present = f"; whole sections alone give {interval(w['present'])}" if w["present"] else ""
        missing, subsets = listed(w["missing"]), listed(w["subsets"])
        yield f"No total, these subsets are missing: {missing}; the scores have {subsets}{present}."
    if w["few"]:
        few = listed([f"{x['subset']} {x['n']} of {x['declared']:g}" for x in w["few"]])
        yield f"Fewer than declared, so these stand on a part of their pairs: {few}."
    if w["unused"]:
        yield f"{w['unused']} pairs are of subsets that no section names."
    if w["lost"]:
        yield f"Left out: {'; '.join(f'{n} {LOST[key]}' for key, n in w['lost'].items())}."


def _length(r: dict[str, Any]) -> str:
    n = r["lengths"]
    parts = [f"Spearman of margin and length difference {n['spearman']:+.3f}"] if n["spearman"] is not None else []
    longer, shorter = n["chosen_longer"], n["chosen_shorter"]
    parts += [f"accuracy where chosen is longer {interval(longer)}"] if longer else []
    parts += [f"where it is shorter {interval(shorter)}"] if shorter else []
    parts += [f"length-balanced {interval(n['balanced'])}"] if n["balanced"] else []
    parts += [f"length-controlled {interval(n['controlled'])}"] if n["controlled"] else []
    parts += [f"beyond length {_beyond(n['beyond'])}"] if n["beyond"] else []
    return ", ".join(parts) + "." if parts else "all pairs are of equal lengths."


def _style(r: dict[str, Any]) -> str:
    if not (n := r["style"]):
        return ""
    parts = [f"accuracy without what length and style explain {interval(n['controlled'])}"] if n["controlled"] else []
    parts += [f"beyond both {_beyond(n['beyond'])}"] if n["beyond"] else []
    moved = {name: k for name, k in n["slopes"].items() if k["n_groups"]}
    slopes = [f"{ONE_MORE[name]} {k['slope']:+.3g}{_signed_ends(k)}" for name, k in moved.items()]
    return f"{', '.join(parts)}. One more of each moves the margin by: {', '.join(slopes)}."


def _signed_ends(k: dict[str, Any]) -> str:
    if k["low"] is None:
        return f" ({counted(k['n_groups'], 'group')}: no interval)"
    return f" [{k['low']:+.3g}, {k['high']:+.3g}]" + " (rough)" * (k["n_groups"] < FEW_GROUPS)


def _beyond(b: dict[str, Any]) -> str:
    return f"the margin tells {b['bits_per_pair']:.4f} bits a pair" + ("" if b["p"] is None else f" (p {b['p']:.2g})")


# title -> its sentence, or nothing
FINDINGS: dict[str, Callable[[dict[str, Any]], str]] = {
    "Labels": _labels,
    "Warnings": _warnings,
    "Undecided": _undecided,
    "Noise": _noise,
    "Overlap with training": _overlap,
    "Length": _length,
    "Style": _style,
    "Flips": _flips,
    "Displacement": _displacement,
    "Divided votes": _divided,
    "Calibration": _calibration,
    "Confidence": _confidence,
    "Best of n": _best_of_n,
}
