"""`python -m registry` is the command `distill`."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # Ctrl-C while the command is being loaded is no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from registry.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
