"""`python -m evalkit …`: the same commands, for torchrun."""

from evalkit.cli import main

if __name__ == "__main__":
    main()
