"""The command `distill`. Flags are known here, and nowhere below but in `registry.recipe`.

group              the command itself: errors become one line and an exit code; how to add a subcommand
options            options that several commands share
run_commands       distill, pretrain, features, check
image_commands     generate, evaluate
file_commands      inspect, convert, dataset
plugin_commands    plugins
"""

from __future__ import annotations

from registry.cli import file_commands, image_commands, plugin_commands  # noqa: F401  (each registers its commands)
from registry.cli.run_commands import main

__all__ = ["main"]
