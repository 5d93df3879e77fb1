"""The command `distill`. Flags are known here, and nowhere below but in `registry.recipe`.

group              the command itself: errors become one line and an exit code; how a new subcommand is added
options            options that several commands share
run_commands       distill, pretrain, features, check: what takes a recipe
image_commands     generate, evaluate: what samples a network
file_commands      inspect, convert, dataset
plugin_commands    plugins
"""

from __future__ import annotations

from registry.cli import file_commands, image_commands, plugin_commands  # noqa: F401  (each registers its commands)
from registry.cli.run_commands import main

__all__ = ["main"]
