"""`python -m train sft|dpo|tiny-model …`: the same commands, for torchrun and accelerate launch."""

import sys

from prefkit.cli import run, train

if __name__ == "__main__":
    sys.exit(run(train))
