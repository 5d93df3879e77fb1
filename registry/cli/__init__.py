"""The command `distill`. Flags are known here, and nowhere below but in `registry.recipe`.

group              `distill` itself; errors become one line and an exit code; how to add a subcommand
options            options that several commands share
preview            --dry-run
run_commands       pretrain, features, check
image_commands     generate, evaluate
file_commands      inspect, convert, dataset
plugin_commands    plugins
"""

from __future__ import annotations

from registry.cli import file_commands, image_commands, plugin_commands, run_commands  # noqa: F401  (each adds its commands)
from registry.cli.group import main

__all__ = ["main"]
