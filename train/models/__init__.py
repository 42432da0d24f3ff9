"""Models: found, loaded, paired with their reference, and made cheaper to run.

`locate` finds a model and names its weights, `load` loads it, `policies` are the pairs of policy and reference that
folders stand for, `sharing` asks whether a model may see packed rows. `flex`, `gated`, `lora`, `memory` and `libraries`
make it cost less.
"""
