"""EDM's augmentation of images, told to the network by nine labels (EDM App. F.2, Table 6; the geometric switches).

Each operation is applied to an image with probability p, x-flips always. An operation that is not applied leaves zeros in its
labels, so an image that nothing was done to has nine zeros.

    x-flip, y-flip       w ∈ {0, 1}                                          w; w
    scale s              s = 2^(0.2·w), w ~ N(0, 1)                          w
    rotation             by w ~ U[−π, π]                                     cos w − 1, sin w
    anisotropic scale    (s, 1/s) in a frame turned by r; s = 2^(0.2·w)      w·cos r, w·sin r
    translation          by (w_x·W/8, w_y·H/8), w ~ N(0, 1)²                 w_x, w_y

All but the flips are one affine map, which is carried out without aliasing (Karras et al. 2020, arXiv 2006.06676, App. B).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from registry.core.streams import Streams

LABELS = 9
"""Columns of the labels: what a network's `augment_dim` must be."""

# The low-pass filter sym6 (PyWavelets), scaled to sum 1.
SYM6 = torch.tensor(
    [
        0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
        0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
        0.0017677118642428036, -0.007800708325034148,
    ],
    dtype=torch.float64,
)  # fmt: skip
REACH = len(SYM6) // 4
"""How far the filter reaches, in pixels of the image before it is enlarged."""
DELAY = 2 * REACH - 1
"""By how many pixels of the enlarged image the filter moves it; reducing moves it back."""


class Draws(NamedTuple):
    """What is drawn for B images. `apply` are the uniform numbers that decide whether an operation is applied."""

    flips: Tensor
    """x-flip and y-flip, 0 or 1: [B, 2]."""
    scale: Tensor
    """Standard normal: [B]."""
    angle: Tensor
    """Of the rotation, in [−π, π): [B]."""
    aniso: Tensor
    """Standard normal: [B]."""
    frame: Tensor
    """Angle of the frame of the anisotropic scale, in [−π, π), or 0: [B]."""
    shift: Tensor
    """Standard normal: [B, 2]."""
    apply: Tensor
    """In [0, 1), for y-flip, scale, rotation, anisotropic scale, translation: [B, 5]."""


def augment(x: Tensor, p: float, rng: Streams) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] with operations of probability p in (0, 1], and their labels [B, 9]. C, H, W as they were."""
    return apply(x, masked(draw(rng), p))


def apply(x: Tensor, d: Draws) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] after the operations of masked draws, and their labels [B, 9]."""
    labels = labels_of(d)
    for axis, flip in ((3, d.flips[:, 0]), (2, d.flips[:, 1])):
        x = torch.where(flip.bool().reshape(-1, 1, 1, 1), x.flip(axis), x)
    moved = labels[:, 2:].any(1).nonzero()[:, 0]
    if len(moved):  # the others need not go through the filters, which are the identity for them
        to_source = inverse_map(d, x.shape[2], x.shape[3])
        x = x.index_copy(0, moved, resample(x[moved], to_source[moved]))
    return x, labels


def draw(rng: Streams) -> Draws:
    """The draws for B = len(rng) images."""
    u, z = rng.uniform((10,)), rng.normal((4,))
    turn = (2 * u[:, 2:4] - 1) * math.pi
    frame = torch.where(u[:, 4] < 0.5, turn[:, 1], 0)
    return Draws((u[:, :2] < 0.5).float(), z[:, 0], turn[:, 0], z[:, 1], frame, z[:, 2:], u[:, 5:])


def masked(draws: Draws, p: float) -> Draws:
    """The draws with the parameters of operations that are not applied set to 0."""
    yflip, scale, rotate, aniso, shift = (draws.apply < p).float().unbind(1)
    flips = draws.flips * torch.stack([torch.ones_like(yflip) * (p > 0), yflip], 1)
    return Draws(
        flips, draws.scale * scale, draws.angle * rotate, draws.aniso * aniso, draws.frame * aniso,
        draws.shift * shift[:, None], draws.apply,
    )  # fmt: skip


def labels_of(d: Draws) -> Tensor:
    """The nine labels of masked draws: [B, 9]."""
    columns = [
        d.scale, d.angle.cos() - 1, d.angle.sin(), d.aniso * d.frame.cos(), d.aniso * d.frame.sin(), d.shift[:, 0], d.shift[:, 1]
    ]  # fmt: skip
    return torch.cat([d.flips, torch.stack(columns, 1)], 1)


def matrix(*rows: list[Tensor | float]) -> Tensor:
    """3×3 matrices [B, 3, 3] from entries [B] and constants; the last row is (0, 0, 1)."""
    like = next(entry for row in rows for entry in row if isinstance(entry, Tensor))

    def as_row(row: list[Tensor | float]) -> Tensor:
        return torch.stack([entry if isinstance(entry, Tensor) else torch.full_like(like, entry) for entry in row], -1)

    return torch.stack([*map(as_row, rows), as_row([0.0, 0.0, 1.0])], -2)


def scaling(sx: Tensor, sy: Tensor) -> Tensor:
    """(x, y) -> (sx·x, sy·y): [B, 3, 3]."""
    return matrix([sx, 0.0, 0.0], [0.0, sy, 0.0])


def rotation(angle: Tensor) -> Tensor:
    """Turns by `angle` from the x axis towards the y axis: [B, 3, 3]."""
    cos, sin = angle.cos(), angle.sin()
    return matrix([cos, -sin, 0.0], [sin, cos, 0.0])


def translation(tx: Tensor, ty: Tensor) -> Tensor:
    """(x, y) -> (x + tx, y + ty): [B, 3, 3]."""
    return matrix([1.0, 0.0, tx], [0.0, 1.0, ty])


def inverse_map(d: Draws, height: int, width: int) -> Tensor:
    """From a place in the augmented image to its place in the original, in pixels from the centre: [B, 3, 3]."""
    s, a = torch.exp2(-0.2 * d.scale), torch.exp2(-0.2 * d.aniso)
    stretch = rotation(-d.frame) @ scaling(a, 1 / a) @ rotation(d.frame)
    shift = translation(-d.shift[:, 0] * width / 8, -d.shift[:, 1] * height / 8)
    return scaling(s, s) @ rotation(d.angle) @ stretch @ shift


def resample(x: Tensor, to_source: Tensor) -> Tensor:
    """x [B, C, H, W] seen through maps [B, 3, 3] from places in the result to places in x, without aliasing.

    x is continued by reflection as far as the map reaches, but by no more than its size; beyond are zeros.
    """
    B, C, H, W = x.shape
    size = torch.tensor([W, H], device=x.device)
    # How far outside x its corners come to lie: left, top, right, bottom.
    half = (size - 1) / 2
    signs = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], device=x.device)
    corners = to_source[:, :2, :2] @ (signs * half).T + to_source[:, :2, 2:]
    outside = torch.cat([-corners, corners], 1).amax((0, 2)) + 2 * REACH - half.repeat(2)
    margins: list[float] = outside.clamp(min=0).minimum((size - 1).repeat(2)).ceil().tolist()
    left, top, right, bottom = map(int, margins)
    x = F.pad(x, [left, right, top, bottom], mode="reflect")

    h = (SYM6 / SYM6.sum()).to(x)
    x = enlarged(enlarged(x, h, 3), h, 2)
    # In x and in the result, both at twice the resolution, pixel 2i lies where pixel i was. So with places from the centre,
    # p = (p₂ + ½)/2 in the result, q = M·p + t in x, q₂ = 2·q − ½; affine_grid wants all divided by half the size.
    fine = [B, C, (H + 2 * REACH) * 2, (W + 2 * REACH) * 2]
    M, t = to_source[:, :2, :2], to_source[:, :2, 2] + torch.tensor([(left - right) / 2, (top - bottom) / 2], device=x.device)
    half_in = torch.tensor([x.shape[3], x.shape[2]], device=x.device) / 2
    half_out = torch.tensor([fine[3], fine[2]], device=x.device) / 2
    theta = torch.cat([M * half_out, (2 * t + M.sum(2) / 2 - 0.5)[..., None]], 2) / half_in[:, None]
    x = F.grid_sample(
        x, F.affine_grid(theta, fine, align_corners=False).to(x.dtype), mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return reduced(reduced(x, h, 3), h, 2)


def enlarged(x: Tensor, h: Tensor, dim: int) -> Tensor:
    """Twice the pixels along a dimension, low-passed: [B, C, H, W]."""
    pixels = x.shape[dim]
    y = along(dim, lambda rows: F.conv_transpose1d(rows, 2 * h[None, None], stride=2), x)
    return y.narrow(dim, DELAY, 2 * pixels)


def reduced(x: Tensor, h: Tensor, dim: int) -> Tensor:
    """Half the pixels along a dimension, low-passed, without REACH pixels at both ends: [B, C, H, W]."""
    pixels = x.shape[dim] // 2 - 2 * REACH
    start = 2 * REACH - DELAY
    y = along(dim, lambda rows: F.conv1d(rows, h[None, None], stride=2), x.narrow(dim, start, x.shape[dim] - start))
    return y.narrow(dim, 0, pixels)


def along(dim: int, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f on the rows [n, 1, length] along a dimension of x."""
    x = x.movedim(dim, -1)
    y = f(x.reshape(-1, 1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], y.shape[-1]).movedim(-1, dim)
