"""The networks of the EDM family: SongUNet (ddpmpp, ncsnpp), DhariwalUNet (adm), and the preconditionings around them.

State-dict names and arithmetic match the published checkpoints; the code is ours. The source of this module is embedded in
the files we write, so it imports nothing of this project and runs with Python 3.8 and torch 1.12 and all later ones.

Shapes: images x [B, C, H, W], noise levels sigma [B] or scalar, class labels [B, label_dim], augmentation
labels [B, augment_dim]. Sources: EDM (Karras et al. 2022, Table 1 and Appendix F.2), DDPM++ and NCSN++ (Song et
al. 2021), ADM (Dhariwal and Nichol 2021).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import silu

# ------------------------------------------------------------------------------------------------ initialisation


class Init(NamedTuple):
    """A distribution for initial weights, with the factors that multiply the weights and biases drawn from it."""

    law: Literal["xavier_uniform", "kaiming_uniform", "kaiming_normal"] = "kaiming_normal"
    weight: float = 1.0
    bias: float = 0.0

    def weights(self, shape: Sequence[int], fan_in: int, fan_out: int) -> Tensor:
        return self._draw(self.weight, shape, fan_in, fan_out)

    def biases(self, shape: Sequence[int], fan_in: int, fan_out: int) -> Tensor:
        return self._draw(self.bias, shape, fan_in, fan_out)

    def _draw(self, factor: float, shape: Sequence[int], fan_in: int, fan_out: int) -> Tensor:
        if without_values():
            return torch.empty(*shape)
        if self.law == "xavier_uniform":
            return factor * (math.sqrt(6 / (fan_in + fan_out)) * (2 * torch.rand(*shape) - 1))
        if self.law == "kaiming_uniform":
            return factor * (math.sqrt(3 / fan_in) * (2 * torch.rand(*shape) - 1))
        return factor * (math.sqrt(1 / fan_in) * torch.randn(*shape))


def without_values() -> bool:
    """Whether networks are made on the meta device. Arithmetic there would import torch's compiler, which takes a second."""
    return torch.get_default_device().type == "meta"


# --------------------------------------------------------------------------------------------------------- layers


def separable(taps: Sequence[float]) -> Tensor:
    """The filter [1, 1, n, n] of these taps in both directions; its values add up to 1."""
    row = torch.as_tensor(taps, dtype=torch.float32)
    if without_values():
        return torch.empty(1, 1, len(row), len(row))
    return torch.outer(row, row)[None, None] / row.sum() ** 2


class Linear(nn.Module):
    """y = x Wᵀ + b, with the weights cast to the dtype of x."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, init: Init | None = None) -> None:
        super().__init__()
        init = init or Init()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(init.weights([out_features, in_features], in_features, out_features))
        self.bias = nn.Parameter(init.biases([out_features], in_features, out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Conv2d(nn.Module):
    """A k×k convolution that may also resample by 2 with a fixed separable filter; kernel 0 means resampling only."""

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        fused_resample: bool = False,
        init: Init | None = None,
    ) -> None:
        super().__init__()
        assert not (up and down)
        init = init or Init()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.up, self.down, self.fused_resample = up, down, fused_resample
        fans = in_channels * kernel**2, out_channels * kernel**2
        shape = [out_channels, in_channels, kernel, kernel]
        self.weight = nn.Parameter(init.weights(shape, *fans)) if kernel else None
        self.bias = nn.Parameter(init.biases([out_channels], *fans)) if kernel else None
        self.register_buffer("resample_filter", separable(resample_filter) if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        w = None if self.weight is None else self.weight.to(x.dtype)
        b = None if self.bias is None else self.bias.to(x.dtype)
        w_pad = 0 if w is None else w.shape[-1] // 2
        f_pad = 0 if self.resample_filter is None else (self.resample_filter.shape[-1] - 1) // 2
        if w is not None and self.fused_resample and self.up:
            x = self._upsample(x, max(f_pad - w_pad, 0))
            x = F.conv2d(x, w, padding=max(w_pad - f_pad, 0))
        elif w is not None and self.fused_resample and self.down:
            x = F.conv2d(x, w, padding=w_pad + f_pad)
            x = self._downsample(x, 0)
        else:
            if self.up:
                x = self._upsample(x, f_pad)
            if self.down:
                x = self._downsample(x, f_pad)
            if w is not None:
                return F.conv2d(x, w, b, padding=w_pad)
        return x if b is None else x + b[:, None, None]

    def _upsample(self, x: Tensor, padding: int) -> Tensor:
        assert self.resample_filter is not None
        f = (4 * self.resample_filter.to(x.dtype)).expand(x.shape[1], -1, -1, -1)
        return F.conv_transpose2d(x, f, stride=2, padding=padding, groups=x.shape[1])

    def _downsample(self, x: Tensor, padding: int) -> Tensor:
        assert self.resample_filter is not None
        f = self.resample_filter.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, f, stride=2, padding=padding, groups=x.shape[1])


class GroupNorm(nn.Module):
    """Group normalisation with min(32, channels // 4) groups."""

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_groups = min(32, num_channels // 4)
        if self.num_groups < 1 or num_channels % self.num_groups:
            raise ValueError(
                f"group norm: {num_channels} channels cannot be split into {self.num_groups} groups of equal size; "
                "choose model_channels and channel_mult so that every layer, including skips, has a multiple of "
                "4 channels, and a multiple of 32 above 128"
            )
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class PositionalEmbedding(nn.Module):
    """[cos, sin] of x times the frequencies (1/10000)^(i/(c/2 − e)); with e = 1 (`endpoint`) the last is 1/10000."""

    def __init__(self, num_channels: int, endpoint: bool = False) -> None:
        super().__init__()
        self.num_channels, self.endpoint = num_channels, endpoint

    def forward(self, x: Tensor) -> Tensor:
        half = self.num_channels // 2
        i = torch.arange(half, dtype=x.dtype, device=x.device)
        angles = torch.outer(x, (1 / 10000) ** (i / (half - self.endpoint)))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """[cos, sin] of 2π·x times random frequencies 16·N(0, 1), drawn once."""

    freqs: Tensor

    def __init__(self, num_channels: int, scale: float = 16) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(num_channels // 2) * scale)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(x, 2 * math.pi * self.freqs.to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class UNetBlock(nn.Module):
    """The residual block of all three architectures, with optional resampling, self-attention and adaptive scale.

    x [B, in_channels, H, W], emb [B, emb_channels] -> [B, out_channels, H', W'], where H' is H, 2H or H/2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        up: bool = False,
        down: bool = False,
        num_heads: int = 0,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        resample_filter: Sequence[float] = (1, 1),
        resample_proj: bool = False,
        adaptive_scale: bool = True,
        init: Init | None = None,
        init_zero: Init | None = None,
        init_attn: Init | None = None,
    ) -> None:
        super().__init__()
        init = init or Init()
        init_zero = init_zero or Init(weight=0)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_heads, self.dropout, self.skip_scale = num_heads, dropout, skip_scale
        self.adaptive_scale = adaptive_scale
        resample: dict[str, Any] = {"up": up, "down": down, "resample_filter": resample_filter}

        self.norm0 = GroupNorm(in_channels, eps)
        self.conv0 = Conv2d(in_channels, out_channels, kernel=3, init=init, **resample)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1), init=init)
        self.norm1 = GroupNorm(out_channels, eps)
        self.conv1 = Conv2d(out_channels, out_channels, kernel=3, init=init_zero)
        self.skip: Conv2d | None = None
        if in_channels != out_channels or up or down:
            kernel = 1 if in_channels != out_channels or resample_proj else 0
            self.skip = Conv2d(in_channels, out_channels, kernel, init=init, **resample)
        if num_heads:
            self.norm2 = GroupNorm(out_channels, eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, kernel=1, init=init_attn or init)
            self.proj = Conv2d(out_channels, out_channels, kernel=1, init=init_zero)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(silu(self.norm0(x)))
        p = self.affine(emb).to(x.dtype)[:, :, None, None]
        if self.adaptive_scale:
            scale, shift = p.chunk(2, dim=1)
            h = silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = silu(self.norm1(h + p))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.num_heads:
            x = (self.proj(self._attention(self.qkv(self.norm2(x)))) + x) * self.skip_scale
        return x

    def _attention(self, qkv: Tensor) -> Tensor:
        """Self-attention over all positions: [B, 3·C, H, W] -> [B, C, H, W]."""
        batch, _, height, width = qkv.shape
        qkv = qkv.reshape(batch, self.num_heads, -1, 3, height * width)
        q, k, v = (t.transpose(2, 3) for t in qkv.unbind(3))  # [B, heads, HW, C/heads]
        return attention(q, k, v).transpose(2, 3).reshape(batch, -1, height, width)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ/√c) v, with the softmax in at least float32: [B, heads, HW, c] each -> [B, heads, HW, c]."""
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v)
    exact = torch.promote_types(q.dtype, torch.float32)  # for torch before 2.0
    weights = (q.to(exact) @ k.to(exact).transpose(2, 3) / math.sqrt(q.shape[3])).softmax(3)
    return weights.to(v.dtype) @ v


# --------------------------------------------------------------------------------------------------------- U-Nets


class SongUNet(nn.Module):
    """DDPM++ and NCSN++ (Song et al. 2021), as EDM parametrises them.

    ddpmpp: positional embedding, standard encoder, filter [1, 1], channel_mult_noise 1.
    ncsnpp: Fourier embedding, residual encoder, filter [1, 3, 3, 1], channel_mult_noise 2.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: Literal["fourier", "positional"] = "positional",
        channel_mult_noise: int = 1,
        encoder_type: Literal["standard", "skip", "residual"] = "standard",
        decoder_type: Literal["standard", "skip"] = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        if embedding_type not in ("fourier", "positional"):
            raise ValueError(f"embedding_type is {embedding_type!r}; known are 'fourier' and 'positional'")
        if encoder_type not in ("standard", "skip", "residual"):
            raise ValueError(f"encoder_type is {encoder_type!r}; known are 'standard', 'skip' and 'residual'")
        _check_sizes(img_resolution, channel_mult, model_channels)
        if decoder_type not in ("standard", "skip"):
            raise ValueError(f"decoder_type is {decoder_type!r}; known are 'standard' and 'skip'")
        super().__init__()
        self.label_dropout = label_dropout
        emb_channels = model_channels * channel_mult_emb
        noise_channels = model_channels * channel_mult_noise
        init = Init("xavier_uniform")
        init_zero = Init("xavier_uniform", weight=1e-5)
        block: dict[str, Any] = dict(
            emb_channels=emb_channels, dropout=dropout, skip_scale=math.sqrt(0.5), eps=1e-6,
            resample_filter=resample_filter, resample_proj=True, adaptive_scale=False,
            init=init, init_zero=init_zero, init_attn=Init("xavier_uniform", weight=math.sqrt(0.2)),
        )  # fmt: skip

        self.map_noise: nn.Module = (
            PositionalEmbedding(noise_channels, endpoint=True)
            if embedding_type == "positional"
            else FourierEmbedding(noise_channels)
        )
        self.map_label = Linear(label_dim, noise_channels, init=init) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, bias=False, init=init) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, init=init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=init)

        # Encoder: per level a convolution or a downsampling block, then num_blocks blocks.
        self.enc = nn.ModuleDict()
        channels, aux_channels = in_channels, in_channels
        skips: list[int] = []
        for level, mult in enumerate(channel_mult):
            res = img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(channels, model_channels, kernel=3, init=init)
                channels = model_channels
            else:
                down: dict[str, Any] = dict(down=True, resample_filter=resample_filter, init=init)
                self.enc[f"{res}x{res}_down"] = UNetBlock(channels, channels, down=True, **block)
                if encoder_type == "skip":
                    self.enc[f"{res}x{res}_aux_down"] = Conv2d(aux_channels, aux_channels, kernel=0, **down)
                    self.enc[f"{res}x{res}_aux_skip"] = Conv2d(aux_channels, channels, kernel=1, init=init)
                if encoder_type == "residual":
                    residual = Conv2d(aux_channels, channels, kernel=3, fused_resample=True, **down)
                    self.enc[f"{res}x{res}_aux_residual"] = residual
                    aux_channels = channels
            skips.append(channels)
            for i in range(num_blocks):
                heads = int(res in attn_resolutions)
                self.enc[f"{res}x{res}_block{i}"] = UNetBlock(channels, model_channels * mult, num_heads=heads, **block)
                channels = model_channels * mult
                skips.append(channels)

        # Decoder: the mirror image, with one more block per level, each fed a skip from the encoder.
        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = img_resolution >> level
            if level == len(channel_mult) - 1:
                self.dec[f"{res}x{res}_in0"] = UNetBlock(channels, channels, num_heads=1, **block)
                self.dec[f"{res}x{res}_in1"] = UNetBlock(channels, channels, **block)
            else:
                self.dec[f"{res}x{res}_up"] = UNetBlock(channels, channels, up=True, **block)
            for i in range(num_blocks + 1):
                heads = int(i == num_blocks and res in attn_resolutions)
                self.dec[f"{res}x{res}_block{i}"] = UNetBlock(
                    channels + skips.pop(), model_channels * mult, num_heads=heads, **block
                )
                channels = model_channels * mult
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < len(channel_mult) - 1:
                    self.dec[f"{res}x{res}_aux_up"] = Conv2d(
                        out_channels, out_channels, kernel=0, up=True, resample_filter=resample_filter
                    )
                self.dec[f"{res}x{res}_aux_norm"] = GroupNorm(channels, eps=1e-6)
                self.dec[f"{res}x{res}_aux_conv"] = Conv2d(channels, out_channels, kernel=3, init=init_zero)

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """Noise level, class and augmentation as one vector: [B] -> [B, emb_channels]."""
        emb = self.map_noise(noise_labels)
        emb = emb.unflatten(1, (2, -1)).flip(1).flatten(1)  # [cos, sin] -> [sin, cos]
        if self.map_label is not None and class_labels is not None:
            keep = _keep_labels(class_labels, self.label_dropout if self.training else 0)
            emb = emb + self.map_label(class_labels * keep * math.sqrt(self.map_label.in_features))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return silu(self.map_layer1(silu(self.map_layer0(emb))))

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None) -> Tensor:
        emb = self.embed(noise_labels, class_labels, augment_labels).to(x.dtype)
        skips: list[Tensor] = []
        aux = x
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                aux = layer(aux)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + layer(aux)
            elif name.endswith("aux_residual"):
                x = skips[-1] = aux = (x + layer(aux)) * math.sqrt(0.5)
            else:
                x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)

        out: Tensor | None = None
        head = x
        for name, layer in self.dec.items():
            if name.endswith("aux_up"):
                out = layer(out)
            elif name.endswith("aux_norm"):
                head = silu(layer(x))
            elif name.endswith("aux_conv"):
                out = layer(head) if out is None else out + layer(head)
            else:
                if "_block" in name:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, emb)
        assert out is not None
        return out


class DhariwalUNet(nn.Module):
    """ADM (Dhariwal and Nichol 2021), as EDM parametrises it. Blocks narrower than 64 channels have no attention."""

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
    ) -> None:
        _check_sizes(img_resolution, channel_mult, model_channels)
        super().__init__()
        self.label_dropout = label_dropout
        emb_channels = model_channels * channel_mult_emb
        init = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
        init_zero = Init("kaiming_uniform", weight=0, bias=0)

        def block(in_channels: int, out_channels: int, attention: bool, **resample: Any) -> UNetBlock:
            return UNetBlock(
                in_channels, out_channels, emb_channels, num_heads=out_channels // 64 if attention else 0,
                dropout=dropout, init=init, init_zero=init_zero, **resample,
            )  # fmt: skip

        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, bias=False, init=init_zero) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, init=init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=init)
        self.map_label = (
            Linear(label_dim, emb_channels, bias=False, init=Init("kaiming_normal", weight=math.sqrt(label_dim)))
            if label_dim
            else None
        )

        self.enc = nn.ModuleDict()
        channels = in_channels
        skips: list[int] = []
        for level, mult in enumerate(channel_mult):
            res = img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(channels, model_channels * mult, kernel=3, init=init)
                channels = model_channels * mult
            else:
                self.enc[f"{res}x{res}_down"] = block(channels, channels, False, down=True)
            skips.append(channels)
            for i in range(num_blocks):
                self.enc[f"{res}x{res}_block{i}"] = block(channels, model_channels * mult, res in attn_resolutions)
                channels = model_channels * mult
                skips.append(channels)

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = img_resolution >> level
            if level == len(channel_mult) - 1:
                self.dec[f"{res}x{res}_in0"] = block(channels, channels, True)
                self.dec[f"{res}x{res}_in1"] = block(channels, channels, False)
            else:
                self.dec[f"{res}x{res}_up"] = block(channels, channels, False, up=True)
            for i in range(num_blocks + 1):
                self.dec[f"{res}x{res}_block{i}"] = block(channels + skips.pop(), model_channels * mult, res in attn_resolutions)
                channels = model_channels * mult
        self.out_norm = GroupNorm(channels)
        self.out_conv = Conv2d(channels, out_channels, kernel=3, init=init_zero)

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """Noise level, class and augmentation as one vector: [B] -> [B, emb_channels]."""
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(silu(self.map_layer0(emb)))
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(class_labels * _keep_labels(class_labels, self.label_dropout if self.training else 0))
        return silu(emb)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None) -> Tensor:
        emb = self.embed(noise_labels, class_labels, augment_labels).to(x.dtype)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, emb)
        out: Tensor = self.out_conv(silu(self.out_norm(x)))
        return out


def _check_sizes(img_resolution: int, channel_mult: Sequence[int], model_channels: int) -> None:
    """Check that every level halves the resolution exactly and that channels fit. Raises ValueError."""
    if not channel_mult or img_resolution % 2 ** (len(channel_mult) - 1):
        raise ValueError(
            f"img_resolution {img_resolution} cannot be halved {len(channel_mult) - 1} times (channel_mult {list(channel_mult)}); "
            "use fewer levels, or images of another resolution"
        )
    if model_channels % 4:
        raise ValueError(f"model_channels is {model_channels}; it must be a multiple of 4")


def _keep_labels(class_labels: Tensor, label_dropout: float) -> Tensor | float:
    """1 for rows whose label is kept, 0 for the others (classifier-free training): [B, 1], or 1.0 without dropout."""
    if not label_dropout:
        return 1.0
    keep = torch.rand(class_labels.shape[0], 1, device=class_labels.device) >= label_dropout
    return keep.to(class_labels.dtype)


# ------------------------------------------------------------------------------------------------ preconditioning

UNETS: dict[str, type[nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


class Precond(nn.Module):
    """The denoiser f(x; sigma) = c_skip·x + c_out·F(c_in·x; c_noise) around a U-Net F (EDM Eq. 7).

    Takes x [B, C, H, W] and sigma [B] (or a scalar) and returns the denoised image [B, C, H, W] in the weights'
    precision (float32; float64 after `.double()`). A conditional network without labels gets zeros. With `use_fp16`,
    only the U-Net runs in float16 on CUDA. `sigma_min` and `sigma_max` are the lowest and highest noise level that the
    network was made for; samplers stay between them. A subclass gives the coefficients (EDM Table 1) and its range.
    """

    sigma_min: float
    sigma_max: float
    sigma_data = 0.5
    """Standard deviation of the images, for the weight of a loss. EDM's own coefficients depend on it, too."""
    D, pfgmpp = math.inf, False
    unet_dtype: torch.dtype | None = None
    """What the U-Net computes in; None: float16 on CUDA with use_fp16, otherwise the weights' precision."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        use_fp16: bool,
        model_type: str,
        model_kwargs: dict[str, Any],
        own_kwargs: dict[str, Any],
        outputs: int = 1,
    ) -> None:
        """`own_kwargs` are the arguments of the subclass alone. F has `outputs` times the image's channels; f uses the first."""
        if model_type not in UNETS:
            raise ValueError(f"model_type is {model_type!r}; known are {', '.join(map(repr, UNETS))}")
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.use_fp16, self.N = use_fp16, img_channels * img_resolution**2
        self._init_args: tuple[Any, ...] = ()
        self._init_kwargs: dict[str, Any] = dict(
            img_resolution=img_resolution, img_channels=img_channels, label_dim=label_dim, use_fp16=use_fp16,
            model_type=model_type, **own_kwargs, **model_kwargs,
        )  # fmt: skip
        self.model = UNETS[model_type](
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=img_channels * outputs,
            label_dim=label_dim,
            **model_kwargs,
        )

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """c_skip, c_out, c_in and c_noise at noise levels sigma, in its shape [B, 1, 1, 1] (EDM Table 1)."""
        raise NotImplementedError

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The nearest noise levels that the network was made for, in the shape of sigma. Most networks take every level."""
        return torch.as_tensor(sigma)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        **model_kwargs: Any,
    ) -> Tensor:
        dtype = torch.float64 if self._weights_dtype() == torch.float64 else torch.float32
        lower = self._lower(x.device.type) if dtype == torch.float32 and not force_fp32 else None
        x = x.to(dtype)
        sigma = torch.as_tensor(sigma, dtype=dtype, device=x.device).reshape(-1, 1, 1, 1)
        if self.label_dim == 0:
            class_labels = None
        elif class_labels is None:
            class_labels = torch.zeros(1, self.label_dim, dtype=dtype, device=x.device)
        else:
            class_labels = class_labels.to(dtype).reshape(-1, self.label_dim)

        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        F_x = self.model((c_in * x).to(lower or dtype), c_noise.flatten(), class_labels, **model_kwargs)
        denoised: Tensor = c_skip * x + c_out * F_x[:, : self.img_channels].to(dtype)
        return denoised

    @property
    def init_args(self) -> tuple[Any, ...]:
        """The constructor's positional arguments."""
        return self._init_args

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """The constructor's keyword arguments. With `init_args` and the state dict they define this network completely."""
        return dict(self._init_kwargs)

    def _lower(self, device: str) -> torch.dtype | None:
        """The precision below float32 that the U-Net computes in; float16 is for CUDA only (and for counting)."""
        wanted = self.unet_dtype or (torch.float16 if self.use_fp16 else torch.float32)
        if wanted == torch.float32 or (wanted == torch.float16 and device not in ("cuda", "meta")):
            return None
        return wanted

    def _weights_dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    # Pickling. The files we write store this object as its constructor's arguments, its tensors and this module's source
    # text, in the form that EDM's torch_utils.persistence reads. A script that loads it there can pickle it again.

    _source: ClassVar[str | None] = None
    """The text of this module, if it came out of a file."""
    _SET_LATER = ("use_fp16", "sigma_min", "sigma_max")
    """Attributes that scripts change after construction."""

    def travelling_state(self, source: str) -> dict[str, Any]:
        """What `__setstate__` rebuilds this network from: plain values, tensors on the CPU, and `source`."""
        return {
            "_init_args": tuple(self._init_args),
            "_init_kwargs": dict(self._init_kwargs),
            "_tensors": {name: tensor.detach().cpu() for name, tensor in self.state_dict().items()},
            "_source": source,
            **{name: vars(self)[name] for name in self._SET_LATER},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_tensors" not in state:
            super().__setstate__(state)  # type: ignore[no-untyped-call]
            return
        ours = next(cls for cls in type(self).__mro__ if cls in PRECONDITIONINGS.values())  # the script's class may derive from it
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn and replaced; the script's random state stays
            ours.__init__(self, *state["_init_args"], **state["_init_kwargs"])  # type: ignore[misc]
        self.load_state_dict(state["_tensors"])
        vars(self).update({name: state[name] for name in self._SET_LATER})
        self.eval().requires_grad_(False)
        Precond._source = state["_source"]

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._source is None:
            return super().__reduce_ex__(protocol)
        from torch_utils import persistence  # the module of the project that reads our file

        meta = dict(
            type="class", version=6, module_src=self._source, class_name=type(self).__name__,
            state=self.travelling_state(self._source),
        )  # fmt: skip
        return persistence._reconstruct_persistent_obj, (meta,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Precond:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


class Coefficients(NamedTuple):
    """The coefficients of a preconditioning at noise levels sigma [B, 1, 1, 1] (EDM Table 1): 1, or in the shape of sigma."""

    c_skip: Tensor | float
    c_out: Tensor
    c_in: Tensor | float
    c_noise: Tensor


class EDMPrecond(Precond):
    """EDM's preconditioning, for every noise level. `D`, `N` and `pfgmpp` are PFGM++'s attributes."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        sigma_data: float = 0.5,
        model_type: str = "DhariwalUNet",
        pfgmpp: bool = False,
        D: float = math.inf,
        **model_kwargs: Any,
    ) -> None:
        own: dict[str, Any] = dict(sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=sigma_data)
        if pfgmpp or math.isfinite(D):  # EDM's class of this name does not take PFGM++'s arguments
            own.update(pfgmpp=pfgmpp, D=D)
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs, own)
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data
        self.pfgmpp, self.D = pfgmpp, D

    def coefficients(self, sigma: Tensor) -> Coefficients:
        variance = sigma**2 + self.sigma_data**2
        return Coefficients(
            c_skip=self.sigma_data**2 / variance,
            c_out=sigma * self.sigma_data / variance.sqrt(),
            c_in=1 / variance.sqrt(),
            c_noise=sigma.log() / 4,
        )


class VPPrecond(Precond):
    """The variance-preserving preconditioning of Song et al. 2021, for levels between sigma(epsilon_t) and sigma(1)."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        own = dict(beta_d=beta_d, beta_min=beta_min, M=M, epsilon_t=epsilon_t)
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs, own)
        self.beta_d, self.beta_min, self.M, self.epsilon_t = beta_d, beta_min, M, epsilon_t
        self.sigma_min, self.sigma_max = self.sigma(epsilon_t), self.sigma(1.0)

    def sigma(self, t: float) -> float:
        """sigma(t) = √(e^(½·beta_d·t² + beta_min·t) − 1), t in [0, 1], in float32 as in EDM's networks."""
        t32 = torch.tensor(t, dtype=torch.float32, device="cpu")
        return float(((self.beta_d / 2 * t32**2 + self.beta_min * t32).exp() - 1).sqrt())

    def time(self, sigma: Tensor) -> Tensor:
        """The inverse of sigma(t), in the shape of sigma."""
        return ((self.beta_min**2 + 2 * self.beta_d * (1 + sigma**2).log()).sqrt() - self.beta_min) / self.beta_d

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return Coefficients(c_skip=1.0, c_out=-sigma, c_in=1 / (sigma**2 + 1).sqrt(), c_noise=(self.M - 1) * self.time(sigma))


class VEPrecond(Precond):
    """The variance-exploding preconditioning of Song et al. 2021, for levels between sigma_min and sigma_max."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        own = dict(sigma_min=sigma_min, sigma_max=sigma_max)
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs, own)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return Coefficients(c_skip=1.0, c_out=sigma, c_in=1.0, c_noise=(sigma / 2).log())


class iDDPMPrecond(Precond):  # noqa: N801
    """The preconditioning of Nichol and Dhariwal 2021, for M levels u_0 > … > u_(M−1) (u_M = 0 is the clean image).

    Other levels take the c_noise of the nearest one. Half of the U-Net's outputs are the variances of that paper, not used here.
    """

    u: Tensor

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        own = dict(C_1=C_1, C_2=C_2, M=M)
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs, own, outputs=2)
        self.C_1, self.C_2, self.M = C_1, C_2, M
        u = self.levels()
        self.register_buffer("u", u)
        self.sigma_min, self.sigma_max = float(u[M - 1]), float(u[0])

    def levels(self) -> Tensor:
        """u_(j−1) = √((u_j² + 1)/max(ā_(j−1)/ā_j, C_1) − 1), u_M = 0, ā_j = sin²(π/2·j/M/(C_2 + 1)): [M + 1], float32 as in EDM."""
        a = (math.pi / 2 * torch.arange(self.M + 1, device="cpu") / self.M / (self.C_2 + 1)).sin() ** 2
        u = torch.zeros(self.M + 1, device="cpu")
        for j in range(self.M, 0, -1):
            u[j - 1] = ((u[j] ** 2 + 1) / (a[j - 1] / a[j]).clamp(min=self.C_1) - 1).sqrt()
        return u

    def nearest(self, sigma: Tensor) -> Tensor:
        """The index j of the level nearest to each sigma, in the shape of sigma."""
        return (sigma.to(self.u).reshape(-1, 1) - self.u).abs().argmin(1).reshape(sigma.shape)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c_noise = (self.M - 1 - self.nearest(sigma)).to(sigma.dtype)
        return Coefficients(c_skip=1.0, c_out=-sigma, c_in=1 / (sigma**2 + 1).sqrt(), c_noise=c_noise)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma)
        return self.u[self.nearest(sigma)].to(sigma)


PRECONDITIONINGS: dict[str, type[Precond]] = {cls.__name__: cls for cls in (EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond)}
