"""The networks compared with independent implementations: outputs and gradients for the same weights."""

from __future__ import annotations

import math

import pytest
import torch

from registry.edm.networks import Conv2d, EDMPrecond, GroupNorm, SongUNet, UNetBlock
from tests.conftest import HERE, golden, network_of, tiny_network

NETWORKS = sorted(p.stem for p in (HERE / "golden").glob("networks_*.npz"))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("suffix", "dtype", "tolerance"), [("", torch.float32, 2e-5), ("_f64", torch.float64, 1e-9)])
def test_forward_and_input_gradient(name: str, suffix: str, dtype: torch.dtype, tolerance: float) -> None:
    g = golden(name)
    net = network_of(g, g.meta["kwargs"]).to(dtype)
    x = g.at("x", dtype).requires_grad_()
    labels = g.at("class_labels", dtype) if g.meta["has_labels"] else None
    augment = {"augment_labels": g.at("augment_labels", dtype)} if g.meta["has_augment"] else {}
    out = net(x, g.at("sigma", dtype), labels, **augment)
    (gradient,) = torch.autograd.grad((out * g.at("v")).sum(), x)
    for found, key in ((out, "out"), (gradient, "grad_x")):
        wanted = g.at(key + suffix)
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_names_are_the_published_ones_and_a_missing_label_means_zeros(name: str) -> None:
    g = golden(name)
    net = network_of(g, g.meta["kwargs"])
    assert list(net.state_dict()) == [k.removeprefix("state/") for k in g.keys if k.startswith("state/")]
    assert sum(p.numel() for p in net.parameters()) == g.meta["num_parameters"]
    if g.meta["has_labels"]:
        augment = {"augment_labels": g.at("augment_labels")} if g.meta["has_augment"] else {}
        torch.testing.assert_close(net(g.at("x"), g.at("sigma"), None, **augment), g.at("out_no_label"), rtol=1e-4, atol=1e-5)
    if g.meta["has_augment"]:
        labels = g.at("class_labels") if g.meta["has_labels"] else None
        torch.testing.assert_close(net(g.at("x"), g.at("sigma"), labels), g.at("out_no_augment"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NETWORKS if golden(name).meta["has_augment"]])
def test_augment_labels_of_zeros_are_none_bit_for_bit(name: str) -> None:
    """Their layer has no bias. So a network that was trained with augmentation can be called without these labels."""
    g = golden(name)
    for dtype in (torch.float32, torch.float64):
        net = network_of(g, g.meta["kwargs"]).to(dtype)
        labels = g.at("class_labels", dtype) if g.meta["has_labels"] else None
        x, sigma, augment = g.at("x", dtype), g.at("sigma", dtype), g.at("augment_labels", dtype)
        without = net(x, sigma, labels)
        assert torch.equal(net(x, sigma, labels, augment_labels=torch.zeros_like(augment)), without)
        assert not torch.equal(net(x, sigma, labels, augment_labels=augment), without)


def test_convolutions_with_resampling() -> None:
    g = golden("conv2d")
    for case in g.meta["cases"]:
        key = f"case{case['case']:02d}"
        options = {k: case[k] for k in ("in_channels", "out_channels", "kernel", "up", "down", "resample_filter", "fused_resample")}
        layer = Conv2d(**options)
        layer.load_state_dict(g.state(f"{key}/") and {k: g.at(f"{key}/{k}") for k in layer.state_dict()})
        torch.testing.assert_close(layer(g.at(f"{key}/x")), g.at(f"{key}/out"), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("encoder", "decoder"), [("skip", "skip"), ("skip", "standard"), ("residual", "skip")])
def test_every_encoder_and_decoder_uses_all_its_weights(encoder: str, decoder: str) -> None:
    net = tiny_network(16, 3, channel_mult=[1, 2, 2], encoder_type=encoder, decoder_type=decoder)
    out = net(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 2.0]))
    out.square().sum().backward()
    assert out.shape == (2, 3, 16, 16)
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]


def test_initial_weights_of_song() -> None:
    """Xavier uniform, scaled by 1e-5 before residual sums and by √0.2 for qkv; biases are zero."""
    torch.manual_seed(0)
    block = UNetBlockOf(SongUNet(16, 3, 3, model_channels=64, channel_mult=[1], num_blocks=1, attn_resolutions=[16]))
    bound = math.sqrt(6 / (64 * 9 + 64 * 9))
    assert 0.95 * bound < block.conv0.weight.abs().max() <= bound  # type: ignore[union-attr]
    assert 0.95e-5 * bound < block.conv1.weight.abs().max() <= 1e-5 * bound  # type: ignore[union-attr]
    bound = math.sqrt(0.2) * math.sqrt(6 / (64 + 192))
    assert 0.95 * bound < block.qkv.weight.abs().max() <= bound  # type: ignore[union-attr]
    assert not any(p.any() for name, p in block.named_parameters() if name.endswith("bias"))


def UNetBlockOf(net: SongUNet) -> UNetBlock:
    block = net.enc["16x16_block0"]
    assert isinstance(block, UNetBlock)
    return block


def test_initial_weights_of_adm() -> None:
    """Kaiming uniform × √⅓, also for biases; zero before residual sums; the denoiser starts as c_skip·x."""
    torch.manual_seed(0)
    net = EDMPrecond(16, 3, 10, model_type="DhariwalUNet", model_channels=64, channel_mult=[1], num_blocks=1)
    conv = net.model.enc["16x16_conv"]  # type: ignore[union-attr, operator, index]
    bound = math.sqrt(3 / 27) * math.sqrt(1 / 3)
    assert 0.95 * bound < conv.weight.abs().max() <= bound
    assert 0.8 * bound < conv.bias.abs().max() <= bound
    assert net.model.map_label.weight.std().item() == pytest.approx(1, rel=0.1)  # type: ignore[union-attr, arg-type]
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(net(x, torch.tensor(0.5)), x / 2)


def test_dropout_and_label_dropout_act_in_training_only() -> None:
    net = tiny_network(label_dim=3, dropout=0.5, label_dropout=0.5)
    x, sigma, labels = torch.randn(64, 1, 8, 8), torch.ones(64), torch.eye(3)[torch.arange(64) % 3]
    assert torch.equal(net(x, sigma, labels), net(x, sigma, labels))
    net.train()
    assert not torch.equal(net(x, sigma, labels), net(x, sigma, labels))


def test_channels_that_cannot_be_grouped_are_refused() -> None:
    with pytest.raises(ValueError, match="130 channels cannot be split into 32 groups"):
        GroupNorm(130)
    with pytest.raises(ValueError, match="model_type is 'UNet'; known are 'SongUNet', 'DhariwalUNet'"):
        EDMPrecond(8, 1, model_type="UNet")
