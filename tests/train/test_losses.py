"""Losses against numbers worked by hand and against the formulas of the papers, values and gradients."""

import math

import pytest
import torch

from prefkit.errors import UserError
from train.core.rewards import hits, pair_rewards, reward_sums
from train.losses import LOSSES, PairLogps, find_loss


def pairs(pw, pl, rw, rl, nw=4, nl=5):
    tensors = [torch.tensor([float(x)], dtype=torch.float64) for x in (pw, pl, rw, rl, nw, nl)]
    for t in tensors[:2]:
        t.requires_grad_()
    return PairLogps(*tensors)


# Δw = −10 − (−12) = 2, Δl = −20 − (−15) = −5, β = 0.1: h = 0.7; 1/(2β) = 5
BY_HAND = {
    "sigmoid": 0.403186048885,  # log(1 + e^−0.7)
    "hinge": 0.3,  # 1 − 0.7
    "ipo": 12.25,  # (2/4 + 5/5 − 5)²
}


def test_every_loss_has_a_number_worked_by_hand():
    assert BY_HAND.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_by_hand(name):
    assert LOSSES[name](pairs(-10, -20, -12, -15), 0.1, 0.0).item() == pytest.approx(BY_HAND[name], abs=1e-10)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradient_is_the_slope(name):
    x = pairs(-10, -20, -12, -15)
    LOSSES[name](x, 0.1, 0.0).sum().backward()
    step = 1e-6
    for i, side in enumerate((x.policy_chosen, x.policy_rejected)):
        moved = [[-10, -20, -12, -15], [-10, -20, -12, -15]]
        moved[0][i] += step
        moved[1][i] -= step
        up, down = (LOSSES[name](pairs(*m), 0.1, 0.0).item() for m in moved)
        assert side.grad.item() == pytest.approx((up - down) / (2 * step), abs=1e-6)


def test_label_smoothing_is_cdpo():
    x, eps = pairs(-10, -20, -12, -15), 0.2
    wanted = -(1 - eps) * math.log(1 / (1 + math.exp(-0.7))) - eps * math.log(1 / (1 + math.exp(0.7)))
    assert LOSSES["sigmoid"](x, 0.1, eps).item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("name", "start"), [("sigmoid", math.log(2)), ("hinge", 1.0), ("ipo", 25.0)])
def test_start_values_when_policy_is_reference(name, start):
    assert LOSSES[name](pairs(-10, -20, -10, -20), 0.1, 0.0).item() == pytest.approx(start)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("extreme", [1e3, -1e3])
def test_extremes_stay_finite(name, extreme):
    x = pairs(extreme, -extreme, 0, 0)
    loss = LOSSES[name](x, 0.1, 0.0)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(x.policy_chosen.grad).all()


def test_a_loss_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def squared(x, beta, label_smoothing):\n    return (1 - x.margins(beta)) ** 2\n")
    assert find_loss(f"{file}:squared")(pairs(-10, -20, -12, -15), 0.1, 0.0).item() == pytest.approx(0.09)
    with pytest.raises(UserError, match="no function cubed"):
        find_loss(f"{file}:cubed")


def test_unknown_loss_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'sigmoid'"):
        find_loss("sigmoidd")


def test_a_tie_counts_half():
    t = torch.tensor([1.0, 0.0, -1.0, 0.0], dtype=torch.float64)
    assert hits(t).tolist() == [1.0, 0.5, 0.0, 0.5]
    assert hits(t.numpy()).tolist() == [1.0, 0.5, 0.0, 0.5]
    zero = torch.zeros(4, dtype=torch.float64)
    sums = reward_sums(pair_rewards(t, zero, zero, zero, 1.0))
    assert sums["rewards/accuracies"] == 2.0
