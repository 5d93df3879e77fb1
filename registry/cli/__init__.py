"""The command `distill`. Flags are known here, and nowhere below but in `registry.recipe`.

group              `distill` itself; errors become one line and an exit code; how to add a subcommand
options            options that several commands share
preview            --dry-run, and what plan prints
completion         what the shell completes
again              this command in another process
run_commands       pretrain, features, check, plan
image_commands     generate, evaluate
process_commands   launch
file_commands      inspect, convert, dataset
study_commands     study
report_commands    report
export_commands    export
listing_commands   runs, recipes, cache
starting_commands  init
plugin_commands    plugins, new-plugin

What a command needs of recipes, plugins or torch it imports when it runs, so that help and mistakes are told at once.
"""

from __future__ import annotations

from registry.cli import (  # noqa: F401  (each adds its commands)
    export_commands,
    file_commands,
    image_commands,
    listing_commands,
    plugin_commands,
    process_commands,
    report_commands,
    run_commands,
    starting_commands,
    study_commands,
)
from registry.cli.group import main

__all__ = ["main"]
