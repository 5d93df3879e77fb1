"""Writes a generator in the form that the target's name asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from registry.core.atomic import check_folder
from registry.core.errors import SettingError, UserError
from registry.export.graph import write_onnx, write_program
from registry.export.hub import write_folder
from registry.files.kinds import Kind
from registry.files.locate import open_path
from registry.sample.opening import open_sampler
from registry.show.journal import Journal

FILES = {".onnx": write_onnx, ".pt2": write_program}
FOREIGN = (".bin", ".ckpt", ".gz", ".h5", ".npz", ".pickle", ".pth", ".tar", ".tgz", ".zip")
"""Names of files, which nobody means for a folder."""


def export(
    network: str,
    target: Path,
    *,
    key: str | None = None,
    kind: Kind | None = None,
    sigma_init: float | None = None,
    D: float | None = None,
    license: str | None = None,
    on_doubt: Callable[[str], None] | None = None,
    journal: Journal | None = None,
) -> None:
    """Write a generator for people without this package: an .onnx or .pt2 file, or (without a suffix) a folder for a hub.

    `on_doubt` is called with a sentence if it is only assumed that the file holds a generator. Raises UserError, and then leaves
    nothing behind.
    """
    journal = journal or Journal()
    write = FILES.get(target.suffix.lower())
    if write is None and target.suffix.lower() in (".pkl", ".pt", ".safetensors"):
        raise SettingError("out", f"{target.suffix} files are written by `distill convert`", str(target))
    if write is None and target.suffix.lower() in FOREIGN:
        raise SettingError("out", "is no format to export to; give a name in .onnx or .pt2, or a folder's", str(target))
    if write is not None and license is not None:
        raise SettingError("license", "is for the card of a folder", license)
    check_folder(target.parent, "out")
    if write is not None and target.is_dir():
        raise UserError(f"{target}: is a folder")
    sampler = open_sampler(network, key=key, kind=kind, sigma_init=sigma_init, D=D, device="cpu")
    if sampler.doubt and on_doubt:
        on_doubt(sampler.doubt)
    if write is not None:
        write(sampler, target, journal)
    else:
        assert sampler.stated is not None
        write_folder(sampler, sampler.stated, open_path(network), target, license, journal)
    steps = len(sampler.sigmas)
    journal.log(f"{target}: a generator of {steps} evaluation{'s' * (steps > 1)}; its images were compared with the original's")
