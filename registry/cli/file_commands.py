"""The commands for files: inspect, convert, dataset, table."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext

import click

from registry.cli import completion
from registry.cli.group import main
from registry.cli.options import kind, say_doubt

MOST_GLOBALS = 200
"""Of a file, that are listed."""
DANGEROUS = 3
"""The exit code of `inspect` for a file that would execute something elsewhere."""


def working(what: str, source: str) -> AbstractContextManager[None]:
    """Something that moves on a terminal meanwhile, if the file is here; a download has a bar of its own."""
    from registry.core.text import shown
    from registry.show.journal import Journal

    return Journal().working(f"{what} {shown(source)}") if os.path.isfile(os.path.expanduser(source)) else nullcontext()


@main.command()
@click.argument("file", metavar="FILE", shell_complete=completion.networks)
@click.option("--globals", "show_globals", is_flag=True, help="List every global that the file refers to.")
@kind
def inspect(file: str, show_globals: bool, kind: str | None) -> None:
    """Show what is in a network or training state, and whether it is safe, without executing it.

    The exit code is 0 for a file that is safe, 3 for one that is dangerous, and 1 for one that cannot be read.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from registry.core.text import shown
    from registry.files.describe import describe, in_words

    with working("reading", file):
        found, console = describe(file, kind), Console(highlight=False, emoji=False)

    def line(text: str) -> None:
        console.print(shown(text, most=1000), markup=False, soft_wrap=True)

    line(f"{found.path}: {found.layout}, written by {found.writer}")
    if found.networks:
        columns = [c for c in found.networks[0] if any(n[c] for n in found.networks)]
        table = Table(*columns, box=None, pad_edge=False)
        for network in found.networks:
            table.add_row(*(Text(shown(network[c], most=60)) for c in columns))
        console.print(table)
    for name, value in found.facts.items():
        line(f"{name}: {value}")
    if found.doubt:
        say_doubt(found.doubt)
    if show_globals or any(executes for _, _, executes in found.globals):
        listed = sorted(found.globals, key=lambda of: not of[2])[:MOST_GLOBALS]
        for module, name, executes in listed:
            console.print(f"  {'EXECUTES ' if executes else ''}{in_words(module, name)}", markup=False, soft_wrap=True)
        if more := len(found.globals) - len(listed):
            line(f"  and {more:,} more")
    line(found.verdict)
    if found.dangerous:
        raise click.exceptions.Exit(DANGEROUS)


@main.command()
@click.argument("source", metavar="IN", shell_complete=completion.networks)
@click.argument("target", metavar="OUT", type=click.Path())
@click.option("--key", help="Which network of a file that has several, e.g. ema, G_ema, net.")
@kind
@click.option("--as", "as_", type=click.Choice(["SiD"], case_sensitive=False), help="A whole training state, as SiD resumes it.")
def convert(source: str, target: str, key: str | None, kind: str | None, as_: str | None) -> None:
    """Convert a network: EDM, PFGM++ or SiD pickle or training state, safetensors, plain tensors.

    The suffix of OUT says into what: .pkl (opened by the scripts of EDM, SiD and PFGM++), .safetensors or .pt.

    With --as sid, IN is a training state of distill, and OUT one that SiD's loop resumes: student, generator, average and both
    optimisers.
    """
    if as_ is not None and (key or kind):
        raise click.UsageError("--as sid converts a whole training state; leave --key and --kind out")
    from registry.files.formats import convert_network
    from registry.files.handover import hand_over

    with working("converting", source):
        line = hand_over(source, target) if as_ else convert_network(source, target, key, kind, on_doubt=say_doubt)
    click.echo(line)


@main.command()
@click.argument("source", metavar="SOURCE")
@click.argument("dest", metavar="DEST", type=click.Path())
@click.option("--resolution", type=click.IntRange(min=1, max=8192), help="Resize to this many pixels a side (Lanczos).")
@click.option("--crop", is_flag=True, help="Take the centre square of images that are not square.")
@click.option(
    "--folder-labels/--no-folder-labels",
    default=None,
    help="Classes from the names of sub-folders, in alphabetical order.  [default: if there is no dataset.json]",
)
def dataset(source: str, dest: str, resolution: int | None, crop: bool, folder_labels: bool | None) -> None:
    """Make a data set in EDM's layout (.zip or folder) from a folder of images or CIFAR-10's python tarball.

    The classes are those of dataset.json in the folder. Without that file, images in several sub-folders have a class for each.
    """
    from rich.console import Console
    from rich.progress import Progress

    from registry.edm.archive import make_dataset

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("images", total=None)
        line = make_dataset(source, dest, resolution, crop, folder_labels, lambda n: bar.update(task, completed=n))
    click.echo(line)


@main.command()
@click.argument("results", nargs=-1, required=True, metavar="RESULT...")
def table(results: tuple[str, ...]) -> None:
    """Put results into one table: what `distill evaluate` saved (.json), run folders.

    Numbers that were measured in another way than the first of their column are marked, and a note says what is unlike: the
    number of images, the mode, the reference, the network.
    """
    from rich.console import Console

    from registry.measure.comparison import read_results, table_of_results

    found = [result for source in results for result in read_results(source)]
    Console(highlight=False).print(table_of_results(found))
