"""A folder for a hub: a generator that people sample without this package."""

from __future__ import annotations

import json
import math
import types
from pathlib import Path
from typing import Any

from registry.core.atomic import check_folder, new_folder
from registry.core.errors import UserError
from registry.core.text import kind, shown
from registry.edm.networks import PRECONDITIONINGS, Precond
from registry.export.card import UNKNOWN, Numbers, card, licence_of, numbers_of
from registry.export.graph import OTHER, check_generator, compare, function_of
from registry.export.source import single_file
from registry.files.facts import NetworkFacts
from registry.sample.sampler import Sampler
from registry.show.journal import Journal
from registry.show.pictures import save_samples

PICTURE = 8
"""Images in a row and in a column of samples.png."""
CODE, CONFIG, WEIGHTS, CARD, SAMPLES = "modeling.py", "config.json", "model.safetensors", "README.md", "samples.png"


def write_folder(sampler: Sampler, facts: NetworkFacts, file: Path, target: Path, license: str | None, journal: Journal) -> None:
    """Write weights, config, code, card and pictures of the generator that was read from `file`.

    The code is then run, and must give the generator's images. Raises UserError, and leaves nothing behind.
    """
    check_generator(sampler)
    net, shape = sampler.net, "×".join(map(str, sampler.image_shape))
    if type(net) not in PRECONDITIONINGS.values():
        raise UserError(f"a folder holds a network of EDM's family, and this is a {kind(net)}; write .pt2 or .onnx")
    if sampler.image_shape[0] not in (1, 3):
        raise UserError(f"a folder is for pictures, and these images are {shape}; write .pt2 or .onnx")
    check_folder(target.parent, "out")
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise UserError(f"{target}: is there already; give a new folder, or remove it")
    try:
        str(target.absolute()).encode()
    except UnicodeEncodeError:
        raise UserError(f"{target}: the name is not in UTF-8, which safetensors needs; give another") from None
    license = licence_of(str(facts.table("teacher").get("source", "")), license)
    with new_folder(target) as folder, journal.progress("exporting", 3) as bar:
        fill(folder, target, sampler, facts, numbers_of(file, facts), license)
        bar.at(1, "compared")
        run_alone(folder, sampler)
        bar.at(2, "pictures")
        save_samples(folder / SAMPLES, sampler.sample(PICTURE**2), PICTURE)
    if license == UNKNOWN:
        journal.log("WARNING the teacher's licence is not known: name it, or complete README.md before you publish the folder")


def fill(folder: Path, target: Path, sampler: Sampler, facts: NetworkFacts, numbers: Numbers, license: str) -> None:
    """Weights, config, code and card, in a folder that will be called `target`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    config = configuration(sampler)
    try:
        save_file({k: t.detach().cpu().clone().contiguous() for k, t in sampler.net.state_dict().items()}, folder / WEIGHTS)
    except SafetensorError as error:  # of the disk
        raise UserError(f"{target / WEIGHTS}: cannot be written: {shown(error)}") from None
    (folder / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors' own is for this user alone
    (folder / CODE).write_text(single_file(), encoding="utf-8")
    (folder / CARD).write_text(card(target.resolve().name, facts, config, license, numbers), encoding="utf-8")


def configuration(sampler: Sampler) -> dict[str, Any]:
    """What `modeling.py` needs besides the weights, as plain values; infinity is the text "inf"."""
    assert isinstance(sampler.net, Precond)
    arguments = sampler.net.init_kwargs
    return {
        "network": {"class": type(sampler.net).__name__, "arguments": {k: plain(v) for k, v in arguments.items()}},
        "D": plain(sampler.D), "sigmas": list(sampler.sigmas), "image_shape": list(sampler.image_shape),
        "label_dim": sampler.label_dim,
    }  # fmt: skip


def plain(value: Any) -> Any:
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def run_alone(folder: Path, sampler: Sampler) -> None:
    """Sample the folder with its own code, and check that the images are the generator's. Raises UserError."""
    function_of(sampler)  # on the CPU
    module = types.ModuleType("modeling")
    exec(compile((folder / CODE).read_text(encoding="utf-8"), CODE, "exec"), vars(module))
    generator = module.load(folder)
    compare(sampler, lambda *_: generator.sample(OTHER))
