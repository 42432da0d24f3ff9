"""Losses: a name, and a pure function from log-probabilities of [B] pairs to [B] losses. To add one: write, list it.

Notation of the papers: Δw = log π(y_w|x) − log π_ref(y_w|x), Δl likewise, sums over response tokens; h = β(Δw − Δl).
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from prefkit.errors import UserError
from train.check import check_loss
from train.core.rewards import pair_rewards


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities (nats, summed over response tokens) and token counts of [B] pairs; all tensors [B], fp64."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    n_chosen: Tensor
    n_rejected: Tensor

    def margins(self, beta: float) -> Tensor:
        """h = β(Δw − Δl), [B]."""
        return pair_rewards(self.policy_chosen, self.policy_rejected, self.ref_chosen, self.ref_rejected, beta).margins


Loss = Callable[[PairLogps, float, float], Tensor]


def sigmoid(x: PairLogps, beta: float, label_smoothing: float) -> Tensor:
    """−(1−ε) log σ(h) − ε log σ(−h): DPO, arXiv 2305.18290 eq. 7; with ε > 0 cDPO, ericmitchell.ai/cdpo.pdf eq. 3."""
    h_B = x.margins(beta)
    return -(1 - label_smoothing) * logsigmoid(h_B) - label_smoothing * logsigmoid(-h_B)


def ipo(x: PairLogps, beta: float, label_smoothing: float) -> Tensor:
    """(Δw/n_w − Δl/n_l − 1/(2β))²: IPO, arXiv 2310.12036 eq. 17, averaged over tokens as its authors confirmed."""
    chosen_B = (x.policy_chosen - x.ref_chosen) / x.n_chosen
    rejected_B = (x.policy_rejected - x.ref_rejected) / x.n_rejected
    return (chosen_B - rejected_B - 1 / (2 * beta)) ** 2


def hinge(x: PairLogps, beta: float, label_smoothing: float) -> Tensor:
    """max(0, 1 − h): SLiC, arXiv 2305.10425, in the form of RSO, arXiv 2309.06657 section 3.2."""
    return relu(1 - x.margins(beta))


LOSSES: dict[str, Loss] = {"sigmoid": sigmoid, "ipo": ipo, "hinge": hinge}


def find_loss(name: str) -> Loss:
    """The loss of that name, or a user's own as `./mine.py:function` with the signature of `sigmoid`."""
    if name in LOSSES:
        return LOSSES[name]
    check_loss(name)
    file, _, attribute = name.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:  # whatever a user's own code raises
        raise UserError(f"the loss file fails: {type(e).__name__}: {e}", file, "mend it") from e
    loss = getattr(module, attribute, None)
    if not callable(loss) or len(inspect.signature(loss).parameters) != 3:
        raise UserError(f"no function {attribute}(pair_logps, beta, label_smoothing)", file, "see train/losses.py")
    return loss
