"""SFT and DPO on prefkit's shards.

The tour: `cli` names the commands, `config` holds what can be chosen, `run` is the main path of every run (check → models →
rows → train → save), `sft` and `dpo` say what differs, `losses` are pure functions, `trainer` is transformers' Trainer with
our plan and our forward, `core` is where numbers come from.
"""
