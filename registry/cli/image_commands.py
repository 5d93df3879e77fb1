"""The commands that sample a network: generate, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from registry.cli import completion
from registry.cli.group import main
from registry.cli.options import sampler_options, say_doubt
from registry.core.errors import Interrupted

if TYPE_CHECKING:
    from registry.sample.sampler import Sampler


def opened(**options: Any) -> Sampler:
    """The network's sampler; says so if the kind of network is only assumed."""
    from registry.core import distributed
    from registry.sample.opening import open_sampler

    sampler = open_sampler(**options)
    if sampler.doubt and distributed.rank() == 0:
        say_doubt(sampler.doubt)
    return sampler


@main.command()
@sampler_options
@click.option("--seeds", required=True, metavar="LIST", help="One image per seed, e.g. 0-49999 or 1,2,10-19.")
@click.option("--class", "class_", type=click.IntRange(min=0), help="Class of all images; drawn for each by default.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at a time on one device.")
@click.option("--outdir", required=True, type=click.Path(path_type=Path), help="Folder for the images.")
@click.option("--format", "formats", multiple=True, type=click.Choice(["png", "npz", "grid"]), help="Repeatable.  [default: png]")
def generate(seeds: str, class_: int | None, batch: int, outdir: Path, formats: tuple[Any, ...], **options: Any) -> None:
    """Make images from seeds: one file per seed, one .npz, or a grid.

    \b
    distill generate --network network-snapshot-1.000000-000512.pkl --seeds 0-63 --format grid --outdir images
    distill generate --network edm:cifar10-uncond --nfe 35 --seeds 0-49999 --outdir teacher

    Existing images are skipped. Under torchrun the processes share the work.
    """
    from registry.core import distributed
    from registry.sample.generate import generate, parse_seeds

    wanted, sampler = parse_seeds(seeds), opened(**options)
    try:
        generate(sampler, wanted, outdir, formats or ("png",), class_, batch)
    except (KeyboardInterrupt, Interrupted) as stop:
        code = stop.code if isinstance(stop, Interrupted) else 130
        raise Interrupted(
            f"interrupted; the images so far are in {outdir}, and the same command goes on from there", code
        ) from None
    distributed.stop()


@main.command()
@sampler_options
@click.option(
    "--metrics",
    multiple=True,
    default=("fid",),
    metavar="NAME",
    shell_complete=completion.metrics,
    help="Metrics, repeatable or with commas.  [default: fid]",
)
@click.option("--reference", metavar="DATA|FILE.npz", help="Real images: a folder, a ZIP, digits; or their statistics, also a URL.")
@click.option("--inception", metavar="FILE", help="inception-2015-12-05.pt, if it is not in the cache folder.")
@click.option("--set", "sets", multiple=True, metavar="METRIC.KEY=VALUE", help="A metric's own setting; repeatable.")
@click.option("--samples", type=int, default=50_000, show_default=True, help="Images of a measurement.")
@click.option("--repeats", type=int, default=3, show_default=True, help="Measurements: seeds 0 to n−1, n to 2n−1 and so on.")
@click.option("--batch", type=int, default=100, show_default=True, help="Images at a time on one device.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="The result (default: beside the network's file, or here).",
)
@click.option(
    "--save-reference", type=click.Path(path_type=Path), metavar="FILE.npz", help="Keep the reference's Inception statistics."
)
def evaluate(
    metrics: tuple[str, ...],
    reference: str | None,
    inception: str | None,
    sets: tuple[str, ...],
    samples: int,
    repeats: int,
    batch: int,
    output: Path | None,
    save_reference: Path | None,
    **options: Any,
) -> None:
    """Measure a generator or teacher: FID as the papers report it, or any other metric.

    \b
    distill evaluate --network network-snapshot-best.pkl --reference cifar10.zip
    distill evaluate --network edm:cifar10-uncond --nfe 35 --reference cifar10-32x32.npz --samples 5000

    Under torchrun the processes share the work.
    """
    from registry.plugins.loading import load_plugins
    from registry.recipe.evaluation import resolve_evaluation

    names = [name.strip() for names in metrics for name in names.split(",")]
    config, choices = resolve_evaluation(
        load_plugins(), names, reference=reference, inception=inception, samples=samples, repeats=repeats, batch=batch, sets=sets
    )
    from registry.core import distributed
    from registry.measure.evaluate import evaluate

    evaluate(opened(**options), config, choices, output, save_reference)
    distributed.stop()
