"""A generator as one function, latents -> images, in files that other programs run.

The latents are the only random numbers: a draw of the kernel for each of the K evaluations, scaled by its noise level.
"""

from __future__ import annotations

import io
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from registry.core.atomic import write_atomically
from registry.core.errors import UserError
from registry.core.streams import Streams
from registry.core.text import shown
from registry.core.version import install
from registry.sample.sampler import Sampler
from registry.show.journal import Journal

TOLERANCE = 1e-4
"""How far the exported function's images may be from ours."""
LARGEST = 2**31 - 2**20
"""Bytes of an ONNX file: what its format has room for."""
EXAMPLE, OTHER = 2, 3
"""Images that a function is traced with, and that it is tried with."""


class LatentsToImages(nn.Module):
    """latents [n, K, C, H, W], labels [n, label_dim] -> images [n, C, H, W].

    latents[:, 0] is a draw of the kernel at sigma_K around 0; latents[:, k] is one at the next noise level (IPFM Algorithm 2).
    """

    def __init__(self, net: nn.Module, sigmas: tuple[float, ...]) -> None:
        super().__init__()
        self.net, self.sigmas = net, sigmas

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        x_k = latents[:, 0]
        for k, sigma in enumerate(self.sigmas):
            x: Tensor = self.net(x_k, torch.full((x_k.shape[0],), sigma, device=x_k.device), labels)
            if k + 1 < len(self.sigmas):
                x_k = x + latents[:, k + 1]
        return x


def inputs(sampler: Sampler, seeds: range) -> tuple[Tensor, ...]:
    """The latents [n, K, C, H, W] of seeds, and, for a network with classes, their labels [n, label_dim].

    They are drawn as the generator draws them: a noise must be of the form x + latents, which `compare` sees.
    """
    rng, noise, labels = Streams(seeds), sampler.noise, None
    latents = []
    for k, sigma in enumerate(sampler.sigmas):
        if k == 0:
            latents.append(noise.prior(sampler.image_shape, sigma, rng))
            labels = rng.one_hot(sampler.label_dim)
        else:
            zero = torch.zeros(len(seeds), *sampler.image_shape)
            latents.append(noise.perturb(zero, torch.full((len(seeds),), sigma), rng))
    return (torch.stack(latents, 1), *(() if labels is None else (labels,)))


def write_program(sampler: Sampler, target: Path, journal: Journal) -> None:
    """Write the function as a program of torch.export (.pt2), which `torch.export.load` opens. Raises UserError."""
    function = function_of(sampler)
    with journal.progress("exporting", 3) as bar, quietly():
        program = traced(function, inputs(sampler, range(EXAMPLE)))
        bar.at(1, "written")
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={"distill.json": json.dumps(description(sampler))})
        bar.at(2, "compared")
        buffer.seek(0)
        again = torch.export.load(buffer).module()
        compare(sampler, lambda *given: again(*given))
    write_atomically(target, buffer.getvalue())


def write_onnx(sampler: Sampler, target: Path, journal: Journal) -> None:
    """Write the function as ONNX, checked with onnxruntime. Raises UserError."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (what torch converts with)
    except ImportError as error:
        raise UserError(f"ONNX needs more packages: {install('export')} ({error})") from None
    if sum(tensor.nbytes for tensor in sampler.net.state_dict().values()) > LARGEST:
        raise UserError(f"{target}: an ONNX file holds at most 2 GB, and the network is larger; write .pt2, or a folder")
    function = function_of(sampler)
    example = inputs(sampler, range(EXAMPLE))
    names = ["latents", "labels"][: len(example)]
    with journal.progress("exporting", 3) as bar, quietly():
        program = traced(function, example)
        bar.at(1, "converted")
        try:
            converted = torch.onnx.export(
                program, example, input_names=names, output_names=["images"], dynamo=True, external_data=False, verbose=False
            )
        except Exception as error:  # the converter's, for an operation that ONNX does not have
            raise UserError(f"{target}: this network cannot be written as ONNX ({shown(error)})") from None
        assert converted is not None
        model = converted.model_proto
        onnx.helper.set_model_props(model, {"distill": json.dumps(description(sampler))})
        onnx.checker.check_model(model)
        content = model.SerializeToString()
        bar.at(2, "compared")
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        compare(
            sampler,
            lambda *given: torch.from_numpy(session.run(None, {n: t.numpy() for n, t in zip(names, given, strict=True)})[0]),
        )
    write_atomically(target, content)


def function_of(sampler: Sampler) -> LatentsToImages:
    """The generator's function, on the CPU and in the weights' precision. Raises UserError for a teacher."""
    check_generator(sampler)
    sampler.to("cpu")
    return LatentsToImages(sampler.net, sampler.sigmas).eval()


def check_generator(sampler: Sampler) -> None:
    if sampler.kind != "generator":
        raise UserError(f"{sampler.domain.origin}: is a teacher, which takes many evaluations; a generator is exported")


def traced(function: nn.Module, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The function for every number of images. Raises UserError."""
    any_number = torch.export.Dim("n", min=1)
    try:
        return torch.export.export(function, example, dynamic_shapes=tuple({0: any_number} for _ in example))
    except Exception as error:  # a network of a plugin may do anything
        raise UserError(f"this network cannot be traced by torch.export ({shown(error)})") from None


@torch.no_grad()
def compare(sampler: Sampler, function: Any) -> None:
    """Check that the exported function gives the generator's images, for another number of them. Raises UserError."""
    seeds = range(OTHER)
    found, wanted = function(*inputs(sampler, seeds)), sampler(seeds)
    distance = float((found - wanted).abs().max())
    if not distance <= TOLERANCE:
        what = f"the exported function's images differ from the generator's by up to {distance:.2g}"
        raise UserError(f"{what} (allowed: {TOLERANCE:g}); nothing was written")


def description(sampler: Sampler) -> dict[str, Any]:
    """What somebody must know who runs the function, as plain values."""
    D = "inf" if math.isinf(sampler.D) else sampler.D
    kernel = "standard normal values" if math.isinf(sampler.D) else (
        "standard normal values times sqrt((D/2)/g), g ~ Gamma(D/2, rate 1), one g per image and evaluation"
    )  # fmt: skip
    return {
        "latents": f"[n, {len(sampler.sigmas)}, C, H, W]; latents[:, k] = sigmas[k] * ({kernel})",
        **({"labels": "[n, label_dim], one-hot, float32"} if sampler.label_dim else {}),
        "images": "[n, C, H, W] in about [-1, 1]",
        "D": D, "sigmas": list(sampler.sigmas), "image_shape": list(sampler.image_shape), "label_dim": sampler.label_dim,
    }  # fmt: skip


@contextmanager
def quietly() -> Iterator[None]:
    """torch's exporter prints and warns of what concerns its authors."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
