"""`python -m registry` is the command `distill`."""

import signal
from contextlib import suppress

DEFAULT = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if DEFAULT:
    with suppress(ValueError):  # this is not the main thread
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the command is being loaded is no traceback

from registry.cli import main  # noqa: E402

if DEFAULT:
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as a plugin's worker, which loads this again, expects it

__all__ = ["main"]

if __name__ == "__main__":
    main()
