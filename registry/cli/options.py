"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from registry.cli import completion

Command = Callable[..., Any]


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in this order in the help."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


kind = click.option("--kind", type=click.Choice(["denoiser", "generator"]), help="What the network is, if its file does not say.")


def say_doubt(sentence: str) -> None:
    """Print which kind of network is assumed, and how to say otherwise."""
    click.echo(f"{sentence}; --kind says otherwise")


override = click.option(
    "--set", "sets", multiple=True, metavar="TABLE.KEY=VALUE", shell_complete=completion.settings,
    help="Override one setting; repeatable.",
)  # fmt: skip

recipe_options = options(
    click.option(
        "--recipe",
        metavar="PATH|NAME",
        shell_complete=completion.recipes,
        help="The recipe: a TOML file, or the name of a shipped one.",
    ),
    override,
    click.option("--seed", type=click.IntRange(min=0), help="Seed of everything random: [train] seed."),
    click.option("--outdir", metavar="DIR", help="Where run folders are made: [log] outdir."),
    click.option(
        "--resume",
        metavar="auto|PATH",
        shell_complete=completion.states,
        help="Continue from a training state or run folder; or begin from SiD's.",
    ),
    click.option("--dry-run", is_flag=True, help="Print the resolved recipe and what would run; run nothing."),
)
"""The options of everything that runs a recipe."""

sampler_options = options(
    click.option(
        "--network",
        required=True,
        metavar="FILE",
        shell_complete=completion.networks,
        help="A generator or teacher: any file that distill reads.",
    ),
    click.option("--key", help="Which network of a file that has several, e.g. ema, G_ema, net."),
    kind,
    click.option("--sampler", type=click.Choice(["auto", "generator", "heun"]), default="auto", help="Default: that of the kind."),
    click.option("--steps", type=click.IntRange(min=1), help="Heun steps; a generator has its own, which must agree."),
    click.option("--nfe", type=click.IntRange(min=1), help="Network evaluations per image: 2·steps − 1 for Heun."),
    click.option("--sigma-init", type=float, help="Where a foreign generator starts, if not at 2.5."),
    click.option("--dim", "D", type=float, help="D of a foreign network whose file does not say."),
    click.option(
        "--rng",
        type=click.Choice(["distill", "torch", "pfgmpp"]),
        default="distill",
        help="Draws for a seed: ours, those of EDM's script on a CPU, or PFGM++'s.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
        help="What the network computes in.  [default: as it was saved]",
    ),
    click.option("--compile", is_flag=True, help="Compile the network with torch.compile: a minute at the start, then faster."),
    click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps."),
)
"""What is sampled, and how: the arguments of registry.sample.sampler.open_sampler."""
