"""`python -m registry.cli`, which torchrun starts."""

from registry.cli import main

if __name__ == "__main__":
    main()
