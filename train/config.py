"""Configuration: frozen dataclasses that are dotted flags and YAML sections at once. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter


@dataclass(frozen=True)
class ModelConfig:
    """What is trained."""

    path: Annotated[str, Parameter(show_default=False)] = ""
    "Model folder, run folder, adapter folder, or a name on the hub (required)."
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = None
    "Of the weights; default bfloat16 on CUDA, float32 on CPU and for full fine-tuning."
    four_bit: bool = False
    "Load the frozen base in 4-bit NF4 with double quantisation (QLoRA)."
    attn: Literal["rows", "flex", "sdpa", "eager"] = "rows"
    "rows: no padding, in DPO each prompt once; flex: that by FlexAttention, on a GPU; sdpa, eager: the model's own."


@dataclass(frozen=True)
class DataConfig:
    """What it is trained on."""

    path: Annotated[str, Parameter(show_default=False)] = ""
    'Data set folder written by prefkit convert; for SFT also a file of {"messages": [...]} records (required).'
    split: str = "train"
    "Split to train on."
    eval_split: str = "test"
    "Evaluated after the last step (with trainer.eval_strategy more often) where the data set has it; empty: none."
    limit: int | None = None
    "Use only the first pairs of the split."
    eval_limit: int | None = None
    "Use only the first pairs of the evaluation split."
    max_tokens: int | None = None
    "Of prompt and one response together; default 1024, or all that the model has positions for where that is less."
    max_prompt_tokens: int | None = None
    "Of the prompt alone; default no limit but max_tokens."
    too_long: Literal["drop", "truncate_prompt", "truncate_response"] = "drop"
    "What to do with pairs over the limits; a truncated response gets no EOS."
    template: str | None = None
    "Chat template or format string: a name (question, plain, dialogue), text, or a file; default the tokenizer's."
    order: Literal["shuffled", "file"] = "shuffled"
    "Order of prompts in an epoch."
    one_pair_per_row: bool = False
    "Compute every pair by itself, as other trainers do; slower, equal (but where too_long cuts prompts)."


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters; an adapter that is continued keeps its own shape."""

    enabled: bool = True
    "False trains all weights."
    r: int = 16
    "Rank of the adapter's matrices."
    alpha: int = 32
    "What the adapter adds is scaled by alpha / r."
    dropout: float = 0.0
    "Off in DPO whatever is set."
    targets: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ("all-linear",)
    "Module names: q_proj,v_proj, or q_proj v_proj, or the flag once for each; each must match something."

    def __post_init__(self) -> None:
        names = (name for given in self.targets for name in given.replace(",", " ").split())
        object.__setattr__(self, "targets", tuple(names))


@dataclass(frozen=True)
class DpoConfig:
    """Direct preference optimisation."""

    loss: str = "sigmoid"
    "sigmoid, ipo, hinge, or your own as ./file.py:function."
    beta: float = 0.1
    "How dear it is to leave the reference: the larger, the closer to it."
    label_smoothing: float = 0.0
    "Share of pairs taken to be labelled the wrong way round (cDPO)."
    reference: Literal["online", "cached", "none"] = "online"
    "cached: computed once for all epochs and runs; none: rewards are the policy's own log-probabilities."
    pairs_per_step: int = 32
    "Of one optimizer step, over all processes; a step ends with a whole prompt."
    tokens_per_forward: Annotated[int, Parameter(show_default=False)] = 0
    "Tokens of one micro-batch: memory, never the result; default 1536 on CPU, 16384 on CUDA."


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning on the chosen responses."""

    examples_per_step: int = 32
    "Of one optimizer step, over all processes."
    loss_on: Literal["response", "all"] = "response"
    "Train on response tokens only, or on the prompt's too."
    tokens_per_forward: Annotated[int, Parameter(show_default=False)] = 0
    "Tokens of one micro-batch: memory, never the result; default 1536 on CPU, 16384 on CUDA."


@dataclass(frozen=True)
class SftRun:
    """Everything an SFT run depends on."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    trainer: Annotated[dict[str, str], Parameter(show_default=False)] = field(default_factory=dict)
    "Fields of TrainingArguments, as --trainer.learning-rate 1e-4, the default; cosine, 3 % warm-up, 1 epoch."
    seed: int = 0
    "Of the order of prompts, the adapter's first weights and dropout."


@dataclass(frozen=True)
class DpoRun:
    """Everything a DPO run depends on."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    trainer: Annotated[dict[str, str], Parameter(show_default=False)] = field(default_factory=dict)
    "Fields of TrainingArguments, as --trainer.learning-rate 5e-5, the default; cosine, 3 % warm-up, 1 epoch."
    seed: int = 0
    "Of the order of prompts, the adapter's first weights and dropout."


Run = SftRun | DpoRun
