"""The `distill` command."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from registry.api import Interrupted, UserError
from registry.plugins import Plugins, load_plugins, version
from registry.recipe import FeaturesRecipe, PretrainRecipe, Recipe, dumps, expect, resolve, resolve_evaluation
from registry.sources import whereabouts


class Group(click.Group):
    """A group that also runs by itself, and turns errors into one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        debug = "--debug" in sys.argv
        try:
            code = super().main(*args, **(kwargs | {"standalone_mode": False}))
        except click.exceptions.Abort:
            code = told("interrupted", 130)
        except KeyboardInterrupt:
            code = told("interrupted", 130)
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except UserError as error:
            code = told(str(error), 1, debug)
        except Interrupted as stop:
            code = told(str(stop), stop.code)
        except Exception as error:
            short = " ".join(str(error).split())
            code = told(f"unexpected {type(error).__name__}: {short} (a defect of ours; --debug shows where)", 70, debug)
        sys.exit(code if isinstance(code, int) else 0)


def told(message: str, code: int, debug: bool = False) -> int:
    """Say it on stderr, and give the exit code."""
    if debug:
        traceback.print_exc()
    click.echo(f"distill: {message}" if "\n" not in message else message, err=True)
    return code


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of everything that runs a recipe."""
    for option in reversed(
        (
            click.option("--recipe", metavar="PATH|NAME", help="The recipe: a TOML file, or the name of a shipped one."),
            click.option("--set", "sets", multiple=True, metavar="TABLE.KEY=VALUE", help="Override one setting; repeatable."),
            click.option("--seed", type=click.IntRange(min=0), help="Seed of everything random: [train] seed."),
            click.option("--outdir", metavar="DIR", help="Where run folders are made: [log] outdir."),
            click.option("--resume", metavar="auto|PATH", help="Continue from a training state or run folder."),
            click.option("--dry-run", is_flag=True, help="Print the resolved recipe and what would run; run nothing."),
            click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        )
    ):
        command = option(command)
    return command


def sampler_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what is sampled, and how: those of registry.sampling.open_sampler."""
    for option in reversed(
        (
            click.option("--network", required=True, metavar="FILE", help="A generator or teacher: any file that distill reads."),
            click.option("--key", help="Which network of a file that has several, e.g. ema, G_ema, net."),
            click.option(
                "--sampler",
                type=click.Choice(["auto", "generator", "heun"]),
                default="auto",
                help="By default what the file says.",
            ),
            click.option("--steps", type=click.IntRange(min=1), help="Heun steps; a generator has its own, which must agree."),
            click.option("--nfe", type=click.IntRange(min=1), help="Network evaluations per image: 2·steps − 1 for Heun."),
            click.option("--sigma-init", type=float, help="Where a foreign generator starts, if not at 2.5."),
            click.option("--dim", "D", type=float, help="D of a foreign network whose file does not tell it."),
            click.option(
                "--rng", type=click.Choice(["distill", "pfgmpp"]), default="distill", help="Latents: ours, or PFGM++'s for a seed."
            ),
            click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N."),
        )
    ):
        command = option(command)
    return command


@click.group(cls=Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@recipe_options
@click.option("--loss", metavar="NAME", help="Swap the loss: sid, ipfm, or a plugin's; lays [swap.NAME] over the recipe.")
@click.option("--fresh-teacher", is_flag=True, help="Measure the teacher again instead of using its kept numbers.")
@click.version_option(version(), prog_name="distill")
@click.pass_context
def main(
    context: click.Context,
    recipe: str | None,
    sets: tuple[str, ...],
    seed: int | None,
    outdir: str | None,
    resume: str | None,
    dry_run: bool,
    debug: bool,
    loss: str | None,
    fresh_teacher: bool,
) -> None:
    """Turn slow diffusion (EDM) and electrostatic (PFGM++) teachers into generators of one to four evaluations.

    \b
    distill --recipe quickstart                          distil the shipped digits teacher
    distill --recipe quickstart --loss sid               the same, with SiD
    """
    if context.invoked_subcommand is not None:
        return
    if recipe is None:
        if sets or loss or resume or dry_run or fresh_teacher or outdir or seed is not None:
            raise click.UsageError("Missing option '--recipe'.")
        click.echo(context.get_help())
        return
    plugins = load_plugins()
    resolved = expect(resolve(recipe, plugins, sets, loss, seed, outdir), Recipe)
    if dry_run:
        preview(resolved, plugins)
        return
    from registry import distributed
    from registry.run import distill

    distill(resolved, resume=resume, fresh_teacher=fresh_teacher)
    distributed.stop()


@main.command()
@recipe_options
@click.option("--save", metavar="FILE", help="Where the finished teacher goes (default: into the run folder).")
def pretrain(
    recipe: str | None,
    sets: tuple[str, ...],
    seed: int | None,
    outdir: str | None,
    resume: str | None,
    dry_run: bool,
    debug: bool,
    save: str | None,
) -> None:
    """Train a teacher from images: scikit-learn's digits, or a folder or ZIP."""
    if recipe is None:
        raise click.UsageError("Missing option '--recipe'.")
    plugins = load_plugins()
    resolved = expect(resolve(recipe, plugins, sets, None, seed, outdir), PretrainRecipe)
    if dry_run:
        preview(resolved, plugins)
        return
    from registry import distributed
    from registry.run import pretrain

    pretrain(resolved, resume=resume, save=save)
    distributed.stop()


@main.command()
@click.option("--recipe", required=True, metavar="PATH|NAME", help="The recipe, with [data] and [classifier].")
@click.option("--set", "sets", multiple=True, metavar="TABLE.KEY=VALUE", help="Override one setting; repeatable.")
@click.option("--save", required=True, metavar="FILE", help="Where the feature network goes.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def features(recipe: str, sets: tuple[str, ...], save: str, debug: bool) -> None:
    """Train the feature network of the Fréchet distance."""
    resolved = expect(resolve(recipe, load_plugins(), sets), FeaturesRecipe)
    from registry.run import train_features

    train_features(resolved, save=save)


@main.command()
@sampler_options
@click.option("--seeds", required=True, metavar="LIST", help="One image per seed, e.g. 0-49999 or 1,2,10-19.")
@click.option("--class", "class_", type=click.IntRange(min=0), help="Class of all images; drawn for each by default.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at a time on one device.")
@click.option("--outdir", required=True, type=click.Path(path_type=Path), help="Folder for the images.")
@click.option("--format", "formats", multiple=True, type=click.Choice(["png", "npz", "grid"]), help="Repeatable.  [default: png]")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def generate(
    seeds: str, class_: int | None, batch: int, outdir: Path, formats: tuple[Any, ...], debug: bool, **options: Any
) -> None:
    """Make images from seeds: one file per seed, one .npz, or a grid.

    \b
    distill generate --network network-snapshot-1.000000-000512.pkl --seeds 0-63 --format grid --outdir images
    distill generate --network edm:cifar10-uncond --nfe 35 --seeds 0-49999 --outdir teacher

    What is there already is not made again. Under torchrun the processes share the work.
    """
    from registry import distributed
    from registry.generate import generate, parse_seeds
    from registry.sampling import open_sampler

    wanted = parse_seeds(seeds)
    try:
        generate(open_sampler(**options), wanted, outdir, formats or ("png",), class_, batch)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; what is made is kept in {outdir}, and the same command goes on from there", 130) from None
    distributed.stop()


@main.command()
@sampler_options
@click.option(
    "--metrics", multiple=True, default=("fid",), metavar="NAME", help="Metrics, repeatable or with commas.  [default: fid]"
)
@click.option("--reference", metavar="DATA|FILE.npz", help="Real images: a folder, a ZIP, digits; or their statistics, also a URL.")
@click.option("--inception", metavar="FILE", help="inception-2015-12-05.pt, if it is not in the cache folder.")
@click.option("--samples", type=int, default=50_000, show_default=True, help="Images of a measurement.")
@click.option("--repeats", type=int, default=3, show_default=True, help="Measurements: seeds 0 to n−1, n to 2n−1 and so on.")
@click.option("--batch", type=int, default=100, show_default=True, help="Images at a time on one device.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE.json", help="The result (default: beside the network).")
@click.option(
    "--save-reference", type=click.Path(path_type=Path), metavar="FILE.npz", help="Keep the reference's Inception statistics."
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def evaluate(
    metrics: tuple[str, ...],
    reference: str | None,
    inception: str | None,
    samples: int,
    repeats: int,
    batch: int,
    output: Path | None,
    save_reference: Path | None,
    debug: bool,
    **options: Any,
) -> None:
    """Measure a generator or teacher: FID as the papers report it, or any other metric.

    \b
    distill evaluate --network network-snapshot-best.pkl --reference cifar10.zip
    distill evaluate --network edm:cifar10-uncond --nfe 35 --reference cifar10-32x32.npz --samples 5000

    Under torchrun the processes share the work.
    """
    names = [name.strip() for names in metrics for name in names.split(",")]
    config, choices = resolve_evaluation(
        load_plugins(), names, reference=reference, inception=inception, samples=samples, repeats=repeats, batch=batch
    )
    from registry import distributed
    from registry.evaluation import evaluate
    from registry.sampling import open_sampler

    evaluate(open_sampler(**options), config, choices, output, save_reference)
    distributed.stop()


@main.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@click.option("--set", "sets", multiple=True, metavar="TABLE.KEY=VALUE", help="Override one setting; repeatable.")
@click.option("--loss", metavar="NAME", help="Check the recipe as swapped to this loss.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def check(recipes: tuple[str, ...], sets: tuple[str, ...], loss: str | None, debug: bool) -> None:
    """Validate recipes without running (or importing torch)."""
    plugins, wrong = load_plugins(), 0
    for name in recipes:
        try:
            resolved = resolve(name, plugins, sets, loss)
        except UserError as error:
            wrong += 1
            click.echo(str(error), err=True)
        else:
            click.echo(f"{resolved.path}: ok")
    if wrong:
        raise UserError(f"{wrong} of {len(recipes)} recipes cannot run")


@main.command()
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def plugins(debug: bool) -> None:
    """List every component with its owner, and every plugin that failed to load."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    found = load_plugins()
    console = Console(highlight=False)
    table = Table("kind", "name", "owner", "version", "what it is", box=None, pad_edge=False)
    for entry in sorted(found.registered, key=lambda r: (r.kind, r.component.name, r.owner)):
        twice = len(found.owners(entry.kind, entry.component.name)) > 1
        note = f"{entry.component.help}{'  (two owners: an error when used)' if twice else ''}"
        table.add_row(*map(escape, (entry.kind, entry.component.name, entry.owner, entry.version, note)))
    console.print(table)
    for failure in found.failures:
        console.print(f"plugin {failure.plugin} {failure.version} not loaded: {failure.reason}", style="red", markup=False)


@main.command()
@click.argument("file", metavar="FILE")
@click.option("--globals", "show_globals", is_flag=True, help="List every global that the file refers to.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def inspect(file: str, show_globals: bool, debug: bool) -> None:
    """Tell what is in a network or training state, and whether it is safe, without executing it."""
    from rich.console import Console
    from rich.table import Table

    from registry.describe import describe

    found, console = describe(file), Console(highlight=False)
    console.print(f"{found.path}: {found.layout}, written by {found.writer}", markup=False, soft_wrap=True)
    if found.networks:
        columns = [c for c in found.networks[0] if any(n[c] for n in found.networks)]
        table = Table(*columns, box=None, pad_edge=False)
        for network in found.networks:
            table.add_row(*(network[c] for c in columns))
        console.print(table)
    for name, value in found.facts.items():
        console.print(f"{name}: {value}", markup=False, soft_wrap=True)
    if show_globals or any(executes for _, _, executes in found.globals):
        for module, name, executes in found.globals:
            console.print(f"  {'EXECUTES ' if executes else ''}{module}.{name}", markup=False, soft_wrap=True)
    console.print(found.verdict, markup=False, soft_wrap=True)


@main.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=click.Path())
@click.option("--key", help="Which network of a file that has several, e.g. ema, G_ema, net.")
@click.option(
    "--kind", type=click.Choice(["denoiser", "generator"]), help="What a foreign network is (default: denoiser; SiD: generator)."
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def convert(source: str, target: str, key: str | None, kind: str | None, debug: bool) -> None:
    """Convert a network: EDM, PFGM++ or SiD pickle or training state, safetensors, plain tensors.

    The suffix of OUT says into what: .pkl (opened by the scripts of EDM, SiD and PFGM++), .safetensors or .pt.
    """
    from registry.files import convert_network

    click.echo(convert_network(source, target, key, kind))


@main.command()
@click.argument("source", metavar="SOURCE")
@click.argument("dest", metavar="DEST", type=click.Path())
@click.option("--resolution", type=click.IntRange(min=1), help="Resize to this many pixels a side (Lanczos).")
@click.option("--crop", is_flag=True, help="Take the centre square of images that are not square.")
@click.option("--folder-labels", is_flag=True, help="Classes from the names of sub-folders, in alphabetical order.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def dataset(source: str, dest: str, resolution: int | None, crop: bool, folder_labels: bool, debug: bool) -> None:
    """Make a data set in EDM's layout (.zip or folder) from a folder of images or CIFAR-10's python tarball."""
    from rich.console import Console
    from rich.progress import Progress

    from registry.edm.archive import make_dataset

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("images", total=None)
        line = make_dataset(source, dest, resolution, crop, folder_labels, lambda n: bar.update(task, completed=n))
    click.echo(line)


def preview(recipe: Recipe | PretrainRecipe, plugins: Plugins) -> None:
    """--dry-run: the resolved recipe, and what would run."""
    click.echo(dumps(recipe.tables()).rstrip())
    images, batch = recipe.train.duration_kimg * 1000, recipe.train.batch
    click.echo(f"\n# {-int(-images // batch):,} iterations of {batch} images; runs in {recipe.log.outdir}/NNNNN-{recipe.path.stem}")
    source = getattr(recipe.teacher.config, "source", None) if isinstance(recipe, Recipe) else None
    if source is not None:
        click.echo(f"# the teacher: {whereabouts(source)}")
    chosen = (recipe.teacher, recipe.noise, recipe.loss) if isinstance(recipe, Recipe) else (recipe.noise,)
    click.echo("# " + ", ".join(f"{c.kind} {c.name!r} of plugin {c.owner}" for c in (*chosen, *recipe.metrics)))


if __name__ == "__main__":
    main()
