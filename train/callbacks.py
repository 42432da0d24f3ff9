"""What happens around the steps: one line and one record a log, and a checkpoint at Ctrl-C."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from prefkit.files import write_text
from train.folder import METRICS
from train.terminal import say


class Interrupt(TrainerCallback):
    """Ctrl-C ends a run of one process after the step it is in, with a checkpoint; a second one ends it at once."""

    asked = False
    stopped = False
    previous: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen from here on; not under torchrun, whose processes must stop at the same step."""
        if args.world_size == 1 and threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self.previous)
        say("stopping after this step, with a checkpoint; Ctrl-C again stops at once")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop; called before RunLog, which logs what is saved."""
        if self.asked:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give Ctrl-C back."""
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)


class RunLog(TrainerCallback):
    """One printed line and one line of metrics.jsonl a log; evaluation and checkpoints where epochs end."""

    def __init__(self, out: Path, unit: str, units_per_epoch: int, epoch_ends: list[int]):
        self.file = out / METRICS
        self.speed = f"{unit}_per_second"
        self.epoch_ends = set(epoch_ends)  # but the last, which Trainer sees as the end of its only epoch
        self.units_per_epoch = units_per_epoch
        self.last = (time.monotonic(), 0.0)
        self.step_ended = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what was logged after the checkpoint that training resumes from."""
        if state.is_world_process_zero and self.file.exists():
            *lines, _torn = self.file.read_text("utf-8").split("\n")  # nothing, unless a kill cut the last line
            write_text(self.file, "".join(f"{x}\n" for x in lines if json.loads(x)["step"] <= state.global_step))
        self.last = (time.monotonic(), state.epoch or 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer takes all our epochs for one, and leaves out what came after the last `logging_steps`.

        A checkpoint is logged too: its sums since the last log are not in it, so a run that resumes would lose them.
        """
        self.step_ended = time.monotonic()
        if state.global_step in self.epoch_ends:
            control.should_evaluate |= args.eval_strategy == "epoch"
            control.should_save |= args.save_strategy == "epoch"
            control.should_log |= args.logging_strategy == "epoch"
        last = state.global_step == state.max_steps
        control.should_log |= (last or control.should_save) and args.logging_strategy != "no"

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The speed of training leaves its time out."""
        began = max(self.step_ended, self.last[0])
        self.last = (self.last[0] + time.monotonic() - began, self.last[1])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write and print."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        now, epoch = time.monotonic(), logs.get("epoch", 0.0)
        record = {"step": state.global_step, **logs}
        if "loss" in logs:
            seconds, passed = now - self.last[0], epoch - self.last[1]
            record[self.speed] = passed * self.units_per_epoch / seconds if seconds > 0 else 0.0
            self.last = (now, epoch)
        with self.file.open("a", encoding="utf-8") as f:
            f.write(json.dumps(record) + "\n")
        print(_line(record, state.max_steps), flush=True)


SHOWN = {
    "loss": "loss {:.4f}",
    "eval_loss": "eval loss {:.4f}",
    "rewards/accuracies": "accuracy {:.3f}",
    "eval_rewards/accuracies": "accuracy {:.3f}",
    "rewards/margins": "margin {:+.3f}",
    "eval_rewards/margins": "margin {:+.3f}",
    "grad_norm": "grad {:.2f}",
    "learning_rate": "lr {:.1e}",
    "pairs_per_second": "{:.1f} pairs/s",
    "examples_per_second": "{:.1f} examples/s",
}


def _line(record: dict[str, Any], steps: int) -> str:
    parts = [shown.format(record[k]) for k, shown in SHOWN.items() if k in record]
    return f"step {record['step']:>{len(str(steps))}}/{steps}  " + "  ".join(parts)
