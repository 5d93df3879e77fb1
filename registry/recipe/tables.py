"""The host's own tables of a recipe, with their defaults. The settings of a component are defined beside the component.

Nothing here imports torch.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from registry.core.joining import PATIENCE
from registry.core.settings import Config, Device, Dimension, Positive
from registry.files.paths import DataSource, Reference, Source

Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]
Ints = Annotated[tuple[int, ...], Field(strict=False)]


def _one_to_sixteen(value: tuple[int, ...]) -> tuple[int, ...]:
    if not 1 <= len(value) <= 16:
        raise ValueError("must have 1 to 16 entries")
    return value


Factors = Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(strict=False), AfterValidator(_one_to_sixteen)]
MOST_BATCH = 2**24
MOST_IMAGES, MOST_STEPS = 10**9, 10_000
MOST_KIMG, MOST_TICKS, MOST_MINUTES = 1e9, 10**9, 1e6
"""Thousands of images: a million times the longest run of the papers. Ticks; minutes: two years."""
Kimg = Annotated[float, Field(ge=0.001, le=MOST_KIMG)]
"""Thousands of images, at least one image."""


class GeneratorConfig(Config):
    """[generator]: how many times the generator is applied, at which noise levels (IPFM Algorithm 2)."""

    steps: int = Field(1, ge=1, le=100, description="evaluations per image")
    schedule: Literal["uniform", "karras"] | Annotated[tuple[Positive, ...], Field(strict=False)] = Field(
        "uniform", description="noise levels from sigma_init down: uniform, karras, or a list that begins with sigma_init"
    )
    gradient: Literal["all", "last"] = Field(
        "all", description="train through all applications, or through a random one per image with those before it fixed"
    )
    recompute: bool = Field(False, description="compute activations again in the backward pass: less memory, more time")
    init: Source | None = Field(
        None, description="a network's file or a training state whose weights the generator begins with; default: the teacher's"
    )

    @field_validator("schedule", mode="before")
    @classmethod
    def _is_a_schedule(cls, value: Any, info: ValidationInfo) -> Any:
        steps = info.data.get("steps", 1)
        if isinstance(value, str) and value not in ("uniform", "karras"):
            raise ValueError("must be 'uniform', 'karras', or a list of noise levels")
        if isinstance(value, list | tuple) and len(value) != steps:
            raise ValueError(f"has {len(value)} noise levels, but steps = {steps}")
        if isinstance(value, list | tuple) and any(type(v) not in (int, float) or v <= 0 for v in value):
            raise ValueError("must be positive noise levels")
        if isinstance(value, list | tuple) and any(a <= b for a, b in itertools.pairwise(value)):
            raise ValueError("must be falling")
        return value

    def starts_elsewhere(self, sigma_init: float) -> str | None:
        """Why this schedule cannot serve a noise with this sigma_init, or None if it can."""
        if isinstance(self.schedule, str) or self.schedule[0] == sigma_init:
            return None
        return f"begins with {self.schedule[0]:g}, but [noise] sigma_init = {sigma_init:g}; they must agree"


class WarmupConfig(Config):
    """[warmup]: before the game the generator learns pairs by regression: a start, and the teacher's image from that start."""

    kimg: float = Field(0.0, ge=0, le=MOST_KIMG, description="thousands of images of the regression; 0 = no warm-up")
    pairs: int = Field(2048, ge=1, le=MOST_IMAGES, description="number of pairs; they are made once and kept in the cache folder")
    nfe: int = Field(
        35,
        ge=1,
        lt=2 * MOST_STEPS,
        description="the teacher's evaluations per pair: an odd number, two per Heun step but the last",
    )
    lr: Positive = Field(1e-4, description="the generator's learning rate, which falls to 0 (cosine)")
    betas: Betas = Field((0.9, 0.999), description="Adam's betas")
    student_kimg: float = Field(
        0.0,
        ge=0,
        le=MOST_KIMG,
        description="then the student alone learns the generator's images for so long",
    )

    @field_validator("nfe")
    @classmethod
    def _is_odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"must be odd, since Heun's method takes 2·steps − 1 evaluations; {value - 1} and {value + 1} are")
        return value


def lengths(regression: float, alone: float, game: float, batch: int) -> tuple[int, int, int]:
    """Images of a run's parts, which are given in thousands, in whole batches: of the warm-up's regression, of the student alone
    after it, and of the game. Without a regression there is no warm-up."""
    first, second, third = (-(-round(kimg * 1000) // batch) * batch for kimg in (regression, alone, game))
    return first, second if first else 0, third


def can_be_split(value: bool, info: ValidationInfo) -> bool:
    """Of [train] shard: what does not work with it. Raises ValueError."""
    for other in ("compile", "shared_pass"):
        if value and info.data.get(other):
            raise ValueError(f"does not work with {other}; leave one of them out")
    return value


Shard = Annotated[bool, AfterValidator(can_be_split)]
OnNonfinite = Literal["replace", "stop", "rollback"]


Precision = Literal["fp32", "tf32", "bf16", "fp16"] | None
PRECISION = (
    "of the networks' passes in training: fp32; tf32 (float32 on CUDA's tensor cores); bf16; fp16 (on GPUs only; give eps = 1e-6); "
    "default: fp32, or fp16 if the network's file or fp16 in its table says so"
)


class TrainConfig(Config):
    """[train]: the loop (IPFM Algorithm 1); names and defaults as in EDM and SiD."""

    batch: int = Field(256, ge=1, le=MOST_BATCH, description="images per iteration, over all processes")
    batch_gpu: int | None = Field(None, ge=1, description="images at a time on one device; divides batch")
    duration_kimg: float = Field(
        ge=0, le=MOST_KIMG, description="length of the game, in thousands of images: `batch` per iteration"
    )
    student_steps: int = Field(1, ge=1, le=10_000, description="student steps per generator step")
    lr: Positive = Field(1e-5, description="the student's learning rate")
    glr: Positive = Field(1e-5, description="the generator's learning rate")
    lr_decay: float = Field(0.0, ge=0, le=1, description="last share of the run in which both rates fall to 0 (cosine)")
    betas: Betas = Field((0.0, 0.999), description="Adam's betas of the student")
    gbetas: Betas = Field((0.0, 0.999), description="Adam's betas of the generator")
    eps: Positive = Field(1e-8, description="Adam's epsilon; give 1e-6 for networks that run in float16")
    loss_scaling: Positive = Field(1.0, description="factor of the student's loss")
    generator_loss_scaling: Positive = Field(100.0, description="factor of the generator's loss")
    memory: Literal["full", "lean", "least"] = Field(
        "full",
        description="full keeps all activations for the backward pass; lean computes them again, one network at a time; least one "
        "block at a time, too: less memory, more time, the same numbers",
    )
    precision: Precision = Field(None, description=PRECISION)
    compile: bool = Field(False, description="compile the networks with torch.compile: a minute or more at the start, then faster")
    reuse_samples: bool = Field(
        False,
        description="the student learns from the images of the generator's own step: one evaluation less, and another algorithm",
    )
    shared_pass: bool = Field(
        False,
        description="the student's last step and the generator's use the same images and evaluations: two less, and another "
        "algorithm",
    )
    shard: Shard = Field(
        False,
        description="split weights, gradients, moments and averages over the processes (FSDP2): less memory, more messages",
    )
    clip: Positive | None = Field(None, description="the student's gradient, after the scaling, is shortened to this norm")
    gclip: Positive | None = Field(None, description="the same for the generator's gradient")
    augment: float = Field(
        0.0, ge=0, le=1, description="EDM's augmentation of the images that the student learns from: probability of each operation"
    )
    ema_halflife_kimg: float = Field(500.0, ge=0, allow_inf_nan=False, description="half-life of the generator's average")
    ema_rampup_ratio: float = Field(
        0.05, ge=0, description="the half-life is at most this share of the images seen; 0 = no such limit"
    )
    nonfinite: OnNonfinite = Field(
        "replace",
        description="values that are not finite: replace (images are dropped, gradients replaced, until nothing is left to learn "
        "from), stop at the first, or rollback (like replace, but then go back to the last good state, with other draws)",
    )
    rollbacks: int = Field(3, ge=0, le=1_000_000, description="the most times that nonfinite = 'rollback' goes back")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    threads: int | None = Field(
        None, ge=1, le=1024, description="torch's threads on the CPU; default: OMP_NUM_THREADS, or one or all, whichever is faster"
    )
    timeout_minutes: float = Field(
        PATIENCE, ge=0.01, le=MOST_MINUTES, description="how long processes wait for each other, at the start and later on"
    )


class PretrainConfig(Config):
    """[train] of a teacher: EDM's training, with the same noise objects as the distillation."""

    batch: int = Field(128, ge=1, le=MOST_BATCH, description="images per iteration, over all processes")
    batch_gpu: int | None = Field(None, ge=1, description="images at a time on one device; divides batch")
    duration_kimg: Kimg = Field(description="length of the run, in thousands of images")
    lr: Positive = Field(1e-3, description="learning rate")
    lr_rampup_kimg: float = Field(
        10_000.0, ge=0, allow_inf_nan=False, description="linear warm-up of the learning rate; by default 5 % of a short run"
    )
    lr_decay: float = Field(0.0, ge=0, le=1, description="last share of the run in which the rate falls to 0 (cosine)")
    betas: Betas = Field((0.9, 0.999), description="Adam's betas")
    eps: Positive = Field(1e-8, description="Adam's epsilon")
    precision: Precision = Field(None, description=PRECISION)
    compile: bool = Field(False, description="compile the network with torch.compile: a minute or more at the start, then faster")
    shard: Shard = Field(
        False,
        description="split weights, gradients, moments and averages over the processes (FSDP2): less memory, more messages",
    )
    clip: Positive | None = Field(None, description="largest norm of the gradient; a longer one is shortened")
    augment: float = Field(0.0, ge=0, le=1, description="EDM's augmentation: probability of each operation (EDM on CIFAR-10: 0.12)")
    ema_halflife_kimg: float = Field(500.0, ge=0, allow_inf_nan=False, description="half-life of the average")
    ema_rampup_ratio: float = Field(
        0.05, ge=0, description="the half-life is at most this share of the images seen; 0 = no such limit"
    )
    nonfinite: OnNonfinite = Field(
        "replace",
        description="values that are not finite: replace (images are dropped, gradients replaced, until nothing is left to learn "
        "from), stop at the first, or rollback (like replace, but then go back to the last good state, with other draws)",
    )
    rollbacks: int = Field(3, ge=0, le=1_000_000, description="the most times that nonfinite = 'rollback' goes back")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    threads: int | None = Field(
        None, ge=1, le=1024, description="torch's threads on the CPU; default: OMP_NUM_THREADS, or one or all, whichever is faster"
    )
    timeout_minutes: float = Field(
        PATIENCE, ge=0.01, le=MOST_MINUTES, description="how long processes wait for each other, at the start and later on"
    )

    def fitted(self) -> PretrainConfig:
        """The same, with a warm-up that fits the run if it is not set: EDM's 10,000 of 200,000 kimg, or as large a share."""
        if "lr_rampup_kimg" in self.model_fields_set:
            return self
        return self.model_copy(update={"lr_rampup_kimg": min(self.lr_rampup_kimg, self.duration_kimg / 20)})


class DataConfig(Config):
    """[data]: real images, to train a teacher on, or for a loss that wants them."""

    source: DataSource = Field(description="digits (scikit-learn's), or a folder or ZIP in EDM's layout")
    labels: bool = Field(False, description="train with the classes of the images")

    @field_validator("source")
    @classmethod
    def _is_not_the_teacher(cls, value: str) -> str:
        if value == "teacher":
            raise ValueError("is for metrics only; give digits, or a folder or ZIP of images")
        return value


class NetworkConfig(Config):
    """[network]: the teacher's architecture, in EDM's terms."""

    arch: Literal["ddpmpp", "ncsnpp", "adm"] = Field("ddpmpp", description="ddpmpp, ncsnpp or adm")
    D: Dimension = Field(description="auxiliary dimension the teacher is made for; inf is a diffusion model")
    model_channels: int = Field(128, ge=4, le=8192, description="channels, before channel_mult")
    channel_mult: Factors = Field((1, 2, 2, 2), description="factor of the channels at each resolution, from the highest down")
    num_blocks: int = Field(4, ge=1, le=100, description="residual blocks per resolution")
    attn_resolutions: Ints = Field((16,), description="resolutions with self-attention")
    dropout: float = Field(0.13, ge=0, lt=1, description="in every residual block")
    use_fp16: bool = Field(False, description="run in float16 on CUDA")


class ClassifierConfig(Config):
    """[classifier]: the feature network of the Fréchet distance, and its training."""

    width: int = Field(32, ge=1, le=4096, description="channels of the first convolution; the second has twice as many")
    features: int = Field(64, ge=2, le=65_536, description="dimension of the feature space")
    epochs: int = Field(40, ge=1, description="passes over the images")
    batch: int = Field(64, ge=1, description="images per step")
    lr: Positive = Field(2e-3, description="highest learning rate (one cycle)")
    weight_decay: float = Field(1e-2, ge=0, description="AdamW's")
    noise: float = Field(0.1, ge=0, description="standard deviation of the noise added to the images")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target that is spread over all classes")
    seed: int = Field(0, ge=0, description="seed of everything random")


class LogConfig(Config):
    """[log]: what a run leaves behind, and when. A tick is one line of the log."""

    outdir: Annotated[str, AfterValidator(os.path.expanduser)] = Field(
        "runs", min_length=1, description="folder that run folders are made in"
    )
    tick_kimg: Kimg = Field(50.0, description="thousands of images per tick; by default less in a short run")
    snapshot_ticks: int = Field(
        50,
        ge=1,
        le=MOST_TICKS,
        description="ticks between snapshots: network, grid, metrics (curves may come later); by default less in a short run",
    )
    state_ticks: int = Field(500, ge=1, le=MOST_TICKS, description="ticks between training states")
    state_minutes: float = Field(
        15.0, gt=0, le=MOST_MINUTES, description="minutes between training states, if they come before state_ticks do"
    )
    keep_states: int = Field(
        2, ge=0, le=MOST_TICKS, description="the newest training states that are kept, one of each thousand images; 0 = all"
    )
    trackers: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="names; where numbers and pictures go besides the run's folder. [log.NAME] holds a tracker's own settings"
    )
    background_states: bool | None = Field(
        None,
        description="write states while training goes on, from a copy in main memory; by default on a GPU",
    )
    grid: int = Field(8, ge=1, le=64, description="the sample grid has grid × grid images")

    def fitted(self, kimg: float, batch: int) -> LogConfig:
        """The same, and what is not set fits a run of so many thousand images: a hundred ticks and ten snapshots, or EDM's if it is
        longer. A tick is a batch at least, and between snapshots are a thousand images, since their files are named after those."""
        if kimg >= 100 * self.tick_kimg or not kimg:
            return self
        tick = self.tick_kimg if "tick_kimg" in self.model_fields_set else min(max(float(f"{kimg / 100:.2g}"), batch / 1000), kimg)
        ticks = min(max(int(kimg / tick / 10), math.ceil(1 / tick), 1), max(int(kimg / tick), 1))
        ticks = self.snapshot_ticks if "snapshot_ticks" in self.model_fields_set else ticks
        return self.model_copy(update={"tick_kimg": tick, "snapshot_ticks": ticks})


class EvalConfig(Config):
    """[eval]: how quality is measured, at snapshots and at the end. [eval.NAME] holds a metric's own settings."""

    metrics: Annotated[tuple[str, ...], Field(strict=False)] = Field((), description="names; the first picks the best snapshot")
    reference: Reference | None = Field(
        None, description="the real images, for every metric that takes them; for fid alone also statistics (.npz, or its URL)"
    )
    samples: int = Field(5000, ge=2, le=MOST_IMAGES, description="images per measurement; published FIDs have 50000")
    batch: int = Field(100, ge=1, le=MOST_BATCH, description="images that a process has in memory at a time")
    repeats: int = Field(3, ge=1, le=10_000, description="sampling seeds of the final table: mean and spread")
    snapshot_samples: int = Field(
        1000,
        ge=0,
        le=MOST_IMAGES,
        description="images of the metric at a snapshot; 0 = not measured; by default not more than `samples`",
    )
    teacher_steps: Annotated[tuple[Annotated[int, Field(ge=1, le=MOST_STEPS)], ...], Field(strict=False)] = Field(
        (18, 5), description="the teacher's sampler in the final table: Heun steps"
    )

    @field_validator("snapshot_samples")
    @classmethod
    def _is_a_set(cls, value: int) -> int:
        if value == 1:
            raise ValueError("must be 0, or at least 2: one image is no distribution")
        return value

    def fitted(self) -> EvalConfig:
        """The same, with as many images at a snapshot as at the end if those are fewer and nothing else is said."""
        if "snapshot_samples" in self.model_fields_set:
            return self
        return self.model_copy(update={"snapshot_samples": min(self.snapshot_samples, self.samples)})


PLACEHOLDER = re.compile(r"\{([\w-]+(?:\.[\w-]+)+)\}")
"""{table.key} in a setting of a study: the value that the key has there."""


class StudyConfig(Config):
    """[study]: what a study of this recipe sets together. A run does not use it."""

    along: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="settings that follow others, e.g. 'teacher.source=digits_d{noise.D}': used when a study sets noise.D"
    )

    @field_validator("along")
    @classmethod
    def _follow_a_key(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            key, equals, setting = text.partition("=")
            if not equals or "." not in key or not PLACEHOLDER.search(setting):
                raise ValueError("must be settings that name a key in braces, e.g. 'teacher.source=digits_d{noise.D}'")
        return value
