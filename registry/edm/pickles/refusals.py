"""Refusing a file: the error, and the limits that no genuine file reaches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.core.errors import UserError
from registry.core.text import shown

MAX_PARTS = 1_000_000
"""The most instructions in a file, and the most values that it may unfold to. A large training state has about 400 000."""

FEW_PARTS = 300_000
"""The most instructions in a file that has less than one and a half times as many bytes: it would be read for longer than its size
lets one expect. Training states have 2.5 bytes an instruction, besides their tensors."""

FEW_CALLS, CALL_BYTES = 20_000, 15
"""The most calls in a file of torch.save, or one for so many of its bytes: torch's loader is written in Python, and takes 0.1 ms
for each. A tensor takes two, and 36 bytes and more."""

MAX_DEPTH = 100
"""How deeply values may be nested. A network snapshot needs about 20 levels."""

MAX_ARGUMENTS = 16
"""The most arguments of a call, and the most dimensions of a tensor. Arguments are copied with every call."""

CUT = "is damaged, or was not downloaded completely"
"""How the message begins for a file that ends too early."""


class PickleError(UserError):
    """A file that cannot be read, or is refused. Its message is one line: the file, what is wrong, and what would be right."""


class Misframed(PickleError):
    """A pickle whose frames hide some of its instructions from Python's unpickler, or from whoever reads them in order."""


@contextmanager
def blaming(origin: str | Path) -> Iterator[None]:
    """Turn any error into a PickleError with one line about the file."""
    try:
        yield
    except PickleError as error:
        raise PickleError(f"{origin}: {shown(error, 600)}") from None
    except FileNotFoundError:
        raise PickleError(f"{origin}: no such file") from None
    except OSError as error:
        raise PickleError(f"{origin}: cannot be read: {shown(error.strerror or error)}") from None
    except Exception as error:
        reason = shown(f"{type(error).__name__}: {error}")
        raise PickleError(f"{origin}: is damaged, or not a file of EDM, PFGM++, SiD or IPFM ({reason})") from None
