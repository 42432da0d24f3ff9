"""SFT and DPO on prefkit's shards.

The tour: `cli` names the commands, `config` holds what can be chosen, `sft` and `dpo` are the two kinds of run, over
what `run` does for both (read, check, encode, write down). `losses` are pure functions, `trainer` is transformers'
Trainer with our plan and our forward, `core` is where numbers come from, `models` finds and loads what computes them,
`data` reads splits and keeps what is known.
"""
