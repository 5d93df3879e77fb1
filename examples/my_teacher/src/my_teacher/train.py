"""python -m my_teacher.train FILE: DDPM on scikit-learn's 8×8 digits, as somebody would train it, without the host."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from my_teacher.network import SomebodysUNet, linear_schedule


def train(iterations: int, parametrisation: str = "epsilon", channels: int = 16, batch: int = 128, seed: int = 0) -> nn.Module:
    """|network(x_t, t) − target|² with t uniform (DDPM Eq. 14), Adam, the rate falling to 0 as a cosine."""
    torch.manual_seed(seed)
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    alpha_bar = linear_schedule().float()
    net = SomebodysUNet(channels)
    adam = torch.optim.Adam(net.parameters(), lr=2e-3)
    for i in range(iterations):
        t = torch.randint(len(alpha_bar), (batch,))
        alpha, sigma = alpha_bar[t].sqrt().reshape(-1, 1, 1, 1), (1 - alpha_bar[t]).sqrt().reshape(-1, 1, 1, 1)
        x = images[torch.randint(len(images), (batch,))]
        epsilon = torch.randn_like(x)
        target = epsilon if parametrisation == "epsilon" else alpha * epsilon - sigma * x
        loss = (net(alpha * x + sigma * epsilon, t) - target).square().mean()
        adam.param_groups[0]["lr"] = 2e-3 * (0.5 + 0.5 * math.cos(math.pi * i / iterations))
        adam.zero_grad()
        loss.backward()
        adam.step()
        if (i + 1) % max(1, iterations // 10) == 0:
            print(f"iteration {i + 1} of {iterations}: loss {loss.item():.4f}", flush=True)
    return net


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m my_teacher.train", description=__doc__)
    parser.add_argument("file", type=Path, help="where the checkpoint goes")
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--parametrisation", choices=["epsilon", "velocity"], default="epsilon")
    chosen = parser.parse_args()
    torch.save(train(chosen.iterations, chosen.parametrisation).state_dict(), chosen.file)


if __name__ == "__main__":
    main()
