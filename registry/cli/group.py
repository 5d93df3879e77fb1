"""The command `distill` itself: it distils a recipe, has subcommands, and turns errors into one line and an exit code.

To add a subcommand, write a function in one of the *_commands modules beside this one and decorate it with `@main.command()`.
A new module must be imported in `registry/cli/__init__.py`.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from registry.cli import completion
from registry.cli.again import LAUNCHER, going_on
from registry.cli.options import recipe_options
from registry.core.atomic import remove_unfinished
from registry.core.errors import Diverged, Interrupted, Lost, Mistakes, SettingError, UserError, is_out_of_memory
from registry.core.interruption import WRITER, heeded, is_importing
from registry.core.joining import FOLDER_NOTE, first_to_tell, note_told, record, several
from registry.core.text import cut, printable, shown
from registry.core.version import version
from registry.plugins.faults import fault_of, raised_by_a_plugin

PR_SET_PDEATHSIG = 1
BUG = 70
"""The exit code if the fault is ours (EX_SOFTWARE)."""
PATIENCE = 3.0
"""Seconds that threads have to end after all is done, until it is said that they are waited for. After a signal they have no more,
and what is to be done at the end of the process neither."""
SOON = 1.0
"""Seconds that a plugin's workers have to end when they are told to."""
COMPLETION = "_DISTILL_COMPLETE"
"""In the environment when a shell asks how a word may go on (click's name for it)."""
PARENT = "DISTILL_LAUNCHER"
"""In the environment of a launched process: the process that launched it."""
Handler = Callable[[int, FrameType | None], Any] | signal.Handlers
DEBUG = click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error.")


class PluginsOwn(Exception):
    """An error of a plugin's that click or this command would take for its own: a broken pipe for that of the output, an exit for
    the end of the work, a file that ends too early for Ctrl-C."""


OWN = (click.exceptions.Exit, click.exceptions.Abort, click.ClickException)
"""What only this command itself may raise."""


class Group(click.Group):
    """Adds --debug to every command, names the flag that is at fault, and exits with a code:

    0 done, 1 a user's error, 2 wrong usage, 4 training has diverged, 70 a bug in distill, 75 another process is lost, 128 + the
    signal if interrupted.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(DEBUG)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.params.append(DEBUG)
        super().add_command(cmd, name)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if COMPLETION in os.environ:  # the shell asks, and ends the process
            return super().main(*args, **kwargs)
        stay_with(os.environ.pop(PARENT, ""))  # what this process starts is not launched
        answer_signals(signal.SIG_DFL, interrupt)
        prepare_streams()
        words = [*(kwargs.get("args") or (args[0] if args else None) or sys.argv[1:])]
        debug = "--debug" in words
        try:
            check_working_folder()
            check_words(words)
            code = super().main(*args, **(kwargs | {"standalone_mode": False}))
        except BaseException as raised:  # a plugin may raise anything
            error = raised.__cause__ if isinstance(raised, PluginsOwn) and raised.__cause__ else raised
            if isinstance(error, SystemExit) and error.code not in (None, 0) and fault_of(error) is None:
                raise
            answer_signals(interrupt, signal.SIG_DFL)  # it ends anyway
            message, code = reason(error, words)
            with suppress(OSError, ValueError):  # the code says it, too, where nothing can be printed
                tell(error, message, code, debug)
        leave(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingError as error:
            named = self.with_flag(error, ctx)
            if named is error:
                raise
            raise named from error
        except BrokenPipeError as error:
            if fault_of(error):
                raise PluginsOwn from error
            raise
        except EOFError as error:  # which click takes for the end of what is typed: nothing here is
            raise PluginsOwn from error
        except OWN as error:
            if raised_by_a_plugin(error):
                raise PluginsOwn from error
            raise

    def with_flag(self, error: SettingError, ctx: click.Context) -> UserError:
        """A setting that is an option of the invoked command is named by its flag: `--nfe 4: …` instead of `nfe = 4: …`."""
        command = self.commands.get(ctx.invoked_subcommand or "", self)
        flags = [max(p.opts, key=len) for p in command.params if p.name == error.setting and isinstance(p, click.Option)]
        if error.table or not flags:
            return error
        text = f"{error.value:g}" if isinstance(error.value, float) else shown(error.value, 1000)
        value = "" if error.value is None else f" {text}"
        return UserError(f"{flags[0]}{value}: {error.problem}")


def answer_signals(before: Handler, now: Handler) -> None:
    """End on a signal as on Ctrl-C: with one line, and nothing half-written. What trains or measures answers signals itself."""
    for number in heeded() if threading.current_thread() is threading.main_thread() else ():
        if signal.getsignal(number) in (before, signal.default_int_handler):
            signal.signal(number, now)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End at a signal: in the middle of an import without an exception."""
    if is_importing(frame):
        remove_unfinished()
        launched = FOLDER_NOTE in os.environ and "RANK" in os.environ  # `distill launch` says so if nobody does
        if not launched and os.environ.get("RANK", "0") == "0":
            os.write(2, b"distill: interrupted\n")
        os._exit(128 + number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Interrupted("interrupted", 128 + number)


def prepare_streams() -> None:
    """Print in any locale, and leave the warnings of torch's C++ about its connections out: what is wrong is told in one line."""
    for name in ("stdout", "stderr"):
        if vars(sys)[name] is None:  # it was closed before we began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        if isinstance(stream := vars(sys)[name], io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("COLUMNS", "").strip("0") == "":  # of no width, as some terminals in a browser have
        os.environ.pop("COLUMNS", None)
    if several():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is loaded


def check_working_folder() -> None:
    """Check that there is one: torch's libraries crash without. Raises UserError."""
    try:
        os.getcwd()
    except OSError:
        raise UserError("the working folder was removed, or may not be read; change to another one") from None


def check_words(words: Sequence[str]) -> None:
    """Check that none is empty, as a variable that is not set leaves it (`--outdir "$DIR"`), or has a character that no file's name
    can have, as only callers in Python can give it. Raises UserError."""
    for before, word in zip(("", *words), words, strict=False):
        if "\0" in word:
            raise UserError(f"{word!r} has a character of code 0, which no argument can have")
        if not word or re.fullmatch("--[a-z-]+=", word):
            flag = word.rstrip("=") or (before if before.startswith("--") else "an argument")
            raise UserError(f"{flag} is empty; leave it out, or give it a value")


def stay_with(launcher: str) -> None:
    """A launched process gets SIGTERM when its launcher is killed, and then saves a state instead of training on unseen (Linux).

    It ends at once if the launcher is gone already.
    """
    if not launcher:
        return
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if launcher != str(os.getppid()):
        os._exit(128 + signal.SIGTERM)


def leave(code: int) -> NoReturn:
    """Exit with a code. One of several processes skips Python's shutdown, which torch's communication threads can abort; so does
    one that is left while it writes a state, since torch's writer of files crashes in it."""
    answer_signals(interrupt, signal.SIG_DFL)  # there is nothing left to interrupt
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):  # a plugin may have set one to None
            stream.flush()
    except OSError:  # a full disk; Python would try again, and tell of it
        os._exit(code or 1)
    except ValueError:  # somebody closed them
        os._exit(code)
    if several() or code > 128:  # Python waits for them, or never does
        end_workers(0.0 if code > 128 else PATIENCE)
    if several() or any(thread.name == WRITER for thread in threading.enumerate()):
        os._exit(code)
    late = threading.Timer(PATIENCE, cut_off, (code,)) if code > 128 else threading.Timer(PATIENCE, say_who_stays)
    late.daemon = True
    with suppress(RuntimeError):  # no more threads may be begun
        late.start()
    sys.exit(code)


def end_workers(patience: float) -> None:
    """End what a plugin has started by multiprocessing and left behind, if it does not end within so many seconds."""
    if "multiprocessing" in sys.modules:
        import multiprocessing

        with suppress(ValueError):  # this is not the main thread
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's loaders of data would complain
        end = time.monotonic() + patience
        for process in multiprocessing.active_children():
            process.join(max(end - time.monotonic(), 0.0))
        left = multiprocessing.active_children()
        for process in left:
            process.terminate()
        end = time.monotonic() + SOON
        for process in left:
            process.join(max(end - time.monotonic(), 0.0))
            process.kill()


def cut_off(code: int) -> NoReturn:
    """Exit without what is left of Python's shutdown, which may wait for ever for the locks of workers. A pool may have begun them
    anew."""
    try:
        import multiprocessing

        for process in multiprocessing.active_children():
            process.kill()
    finally:
        os._exit(code)


def say_who_stays() -> None:
    """Print which threads Python waits for at its end: those that a plugin has begun and not ended."""
    names = [t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
    if names:
        left = shown(", ".join(names), 200)
        os.write(2, f"distill: done, but for a thread that a plugin has left behind ({left}); Ctrl-C leaves at once\n".encode())


def tell(error: BaseException, message: str, code: int, debug: bool) -> None:
    """Print why the command ends, if no other process has done so. Raises OSError if nothing can be printed."""
    if several():
        record("".join(traceback.format_exception(error)) if code == BUG else message)
        if not first_to_tell():
            return
        note_told()
    if debug and not isinstance(error, Interrupted | KeyboardInterrupt):
        traceback.print_exception(error)
    message = printable(message)
    many = isinstance(error, Mistakes) and "\n" in message
    click.echo(message if many else f"distill: {message.replace(chr(10), '?')}", err=True)


def reason(error: BaseException, words: Sequence[str] = ()) -> tuple[str, int]:
    """What to tell of an error, and the exit code."""
    match error:
        case _ if isinstance(error, OWN) and raised_by_a_plugin(error):
            pass
        case click.exceptions.Abort() | KeyboardInterrupt():
            return "interrupted", 130
        case click.ClickException():
            return usage(error), error.exit_code
        case Interrupted():
            if error.state is None:
                return str(error), error.code
            known = words and (not several() or LAUNCHER in os.environ)  # what else starts several processes is not
            again = going_on(words, error.state) if known else f"--resume {shlex.quote(error.state)}"
            return f"{error}, continue with {again}", error.code
        case Diverged() | Lost():
            return str(error), error.code
        case UserError():
            return str(error), 1
    try:
        text = " ".join(str(error).split())
    except BaseException:  # whoever wrote the error may have written that, too
        text = ""
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if fault := fault_of(error):
        return f"plugin {fault.plugin!r}: {what} ({fault.file}, line {fault.line})", 1
    match error:
        case MemoryError():
            return "there is not enough memory", 1
        case RuntimeError() | ImportError() if is_out_of_memory(error):
            return f"there is not enough memory; fewer images at a time (batch_gpu, --batch) need less ({cut(text, 100)})", 1
        case ValueError() if "I/O operation on closed file" in text:
            return "the output has been closed", 1
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EIO | errno.EBADF, filename=None):
            return f"the output cannot be written: {error.strerror}", 1
        case OSError() if error.filename:  # a name that the system refuses, a disk that fails
            return f"{shown(error.filename, 200)}: {error.strerror}", 1
    return f"unexpected {what} (a bug in distill; --debug shows where)", BUG


def usage(error: click.ClickException) -> str:
    """What is wrong with the words of a command, and where it stands which are right."""
    text = " ".join(error.format_message().split()).removesuffix(".")
    text = text[:1].lower() + text[1:].replace(". (Did you", " (did you").replace(". Did you", "; did you")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{text}{' See' if text.endswith('?') else '; see'} {context.command_path} --help" if context else text


def say_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"distill, version {version()}")
        context.exit()


@click.group(cls=Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@recipe_options
@click.option(
    "--loss",
    metavar="NAME",
    shell_complete=completion.losses,
    help="Use another loss (`distill plugins` lists them) and apply the recipe's [swap.NAME].",
)
@click.option("--fresh-teacher", is_flag=True, help="Measure the teacher again instead of using its kept numbers.")
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=say_version, help="Show the version and exit.")
@click.pass_context
def main(
    context: click.Context,
    recipe: str | None,
    sets: tuple[str, ...],
    seed: int | None,
    outdir: str | None,
    resume: str | None,
    dry_run: bool,
    loss: str | None,
    fresh_teacher: bool,
) -> None:
    """Turn slow diffusion (EDM) and electrostatic (PFGM++) teachers into generators of one to four evaluations.

    \b
    distill --recipe quickstart                          distil the shipped digits teacher
    distill --recipe quickstart --loss sid               the same, with SiD
    """
    given = [p.opts[0] for p in context.command.params if context.get_parameter_source(p.name or "") == ParameterSource.COMMANDLINE]
    given = [flag for flag in given if flag not in ("--debug", "--recipe")]
    if context.invoked_subcommand is not None:
        if given or recipe:
            flag = given[0] if given else "--recipe"
            raise click.UsageError(f"{flag} comes after the command: distill {context.invoked_subcommand} {flag} …")
        return
    if recipe is None:
        if given:
            raise click.UsageError("Missing option '--recipe'.")
        click.echo(context.get_help())
        return
    from registry.plugins.loading import load_plugins
    from registry.recipe.reading import expect, resolve
    from registry.recipe.resolved import Recipe

    plugins = load_plugins()
    resolved = expect(resolve(recipe, plugins, sets, loss, seed, outdir), Recipe)
    if dry_run:
        from registry.cli.preview import preview

        preview(resolved)
        return
    from registry.core import distributed
    from registry.runs.distill import distill

    distill(resolved, resume=resume, fresh_teacher=fresh_teacher)
    distributed.stop()
