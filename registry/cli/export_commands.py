"""The command that takes a generator elsewhere: export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from registry.cli import completion
from registry.cli.group import main
from registry.cli.options import kind, say_doubt


@main.command()
@click.argument("network", metavar="NETWORK", shell_complete=completion.networks)
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--key", help="Which network of a file that has several, e.g. ema, G_ema.")
@kind
@click.option("--sigma-init", type=float, help="Where a foreign generator starts, if not at 2.5.")
@click.option("--dim", "D", type=float, help="D of a foreign generator whose file does not say.")
@click.option("--license", metavar="ID", help="The weights' licence, for a folder's card.  [default: the published teacher's]")
def export(network: str, out: Path, license: str | None, **options: Any) -> None:
    """Write a generator for people who do not have distill: a folder for a hub, ONNX, or a program of torch.export.

    \b
    distill export runs/00003-quickstart my-generator    # weights, modeling.py, a card: sampled with torch and safetensors alone
    distill export runs/00003-quickstart generator.onnx  # latents -> images, for any number of images
    distill export runs/00003-quickstart generator.pt2   # the same for torch.export.load

    NETWORK is a generator's file or a run folder. What was written is run, and its images are compared with the original's.
    """
    from registry.export.targets import export

    export(network, out, license=license, on_doubt=say_doubt, **options)
