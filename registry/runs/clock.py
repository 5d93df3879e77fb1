"""How long a run has trained, so that runs can be compared at equal time."""

from __future__ import annotations

import time

import torch


class Clock:
    """Seconds of training so far, added up over resumptions. It is stopped while pictures, metrics and states are made."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def now(self) -> float:
        """The seconds until now, also while it runs."""
        return self.seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    def start(self) -> None:
        """Start, if it is not running."""
        if self._since is None:
            self._since = time.monotonic()

    def stop(self, device: torch.device) -> None:
        """Stop, if it is running. Waits for the device, so that work that was only handed to it counts, too."""
        if self._since is not None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.seconds += time.monotonic() - self._since
            self._since = None
