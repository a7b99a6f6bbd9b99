"""`python -m marigold VERB ...`, for launchers such as `torchrun -m marigold train`."""

from marigold.cli import main

if __name__ == "__main__":
    main()
