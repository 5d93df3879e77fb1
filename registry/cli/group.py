"""The command itself: a group that also runs alone, and turns errors into one line and an exit code.

A new subcommand is a function in one of the modules beside this one, decorated with `@main.command()`.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

import click

from registry.core.errors import Interrupted, SettingError, UserError

DEBUG = click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error.")


class Group(click.Group):
    """Adds --debug to every command, names the flag that is at fault, and exits with a code:

    0 done, 1 a user's error, 2 wrong usage, 70 a bug in distill, 130 or 143 interrupted (128 + the signal).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(DEBUG)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.params.append(DEBUG)
        super().add_command(cmd, name)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        debug = "--debug" in (kwargs.get("args") or (args[0] if args else None) or sys.argv)
        try:
            code = super().main(*args, **(kwargs | {"standalone_mode": False}))
        except (click.exceptions.Abort, KeyboardInterrupt):
            code = report("interrupted", 130)
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except UserError as error:
            code = report(str(error), 1, debug)
        except Interrupted as stop:
            code = report(f"{stop}, continue with --resume {stop.state}" if stop.state else str(stop), stop.code)
        except Exception as error:
            short = " ".join(str(error).split())
            code = report(f"unexpected {type(error).__name__}: {short} (a bug in distill; --debug shows where)", 70, debug)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingError as error:
            raise self.with_flag(error, ctx) from error

    def with_flag(self, error: SettingError, ctx: click.Context) -> UserError:
        """A setting that is an option of the invoked command is named by its flag: `--nfe 4: …` instead of `nfe = 4: …`."""
        command = self.commands.get(ctx.invoked_subcommand or "", self)
        flags = [max(p.opts, key=len) for p in command.params if p.name == error.setting and isinstance(p, click.Option)]
        if error.table or not flags:
            return error
        value = "" if error.value is None else f" {error.value:g}" if isinstance(error.value, float) else f" {error.value}"
        return UserError(f"{flags[0]}{value}: {error.problem}")


def report(message: str, code: int, debug: bool = False) -> int:
    """Print the message to stderr and return the exit code."""
    if debug:
        traceback.print_exc()
    click.echo(f"distill: {message}" if "\n" not in message else message, err=True)
    return code
