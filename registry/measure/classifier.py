"""A small classifier whose hidden layer is the feature space of the Fréchet distance for small images.

Inception features mean nothing for 8×8 digits: they are made for photographs, resized to 299×299. A classifier trained on the
digits themselves has features that describe digits. A recipe in the repository trains it, and the result is shipped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from registry.files.formats import weights_hash
from registry.measure.feature_network import FeatureNetwork
from registry.recipe.tables import ClassifierConfig

RESOLUTIONS = range(2, 129)
"""It pools 2 × 2 pixels, and its hidden layer grows with the number of pixels."""


class Classifier(nn.Module):
    """Two 3×3 convolutions, pooling, and a hidden layer of `features` units: x [B, C, R, R] -> logits [B, classes]."""

    def __init__(self, img_resolution: int, img_channels: int, classes: int, width: int = 32, features: int = 64) -> None:
        super().__init__()
        self.init_kwargs = dict(
            img_resolution=img_resolution, img_channels=img_channels, classes=classes, width=width, features=features
        )
        self.conv0 = nn.Conv2d(img_channels, width, kernel_size=3, padding=1)
        self.conv1 = nn.Conv2d(width, 2 * width, kernel_size=3, padding=1)
        self.hidden = nn.Linear(2 * width * (img_resolution // 2) ** 2, features)
        self.logits = nn.Linear(features, classes)

    def embed(self, x: Tensor) -> Tensor:
        """The feature space: [B, C, R, R] -> [B, features]."""
        h = F.max_pool2d(F.silu(self.conv1(F.silu(self.conv0(x)))), 2)
        return F.silu(self.hidden(h.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.logits(self.embed(x))
        return logits


class ClassifierFeatures(FeatureNetwork):
    """The hidden layer of a classifier as a feature space."""

    slow = False
    batch = 1000

    def __init__(self, classifier: Classifier, name: str) -> None:
        super().__init__()
        self.name = name
        self.classifier, self.hash, self.dimension = classifier, weights_hash(classifier), classifier.hidden.out_features
        self.details = {"features": name, "features_hash": self.hash}

    @torch.no_grad()
    def rows(self, images: Tensor) -> Tensor:
        return torch.cat([self.classifier.embed(x) for x in images.cpu().split(self.batch)])

    @torch.no_grad()
    def present(self, rows: Tensor) -> int:
        """The number of classes that at least 1 % of the images with these features fall into."""
        counts = self.classifier.logits(rows).argmax(1).bincount()
        return int((counts >= 0.01 * len(rows)).sum())


def train(x: Tensor, classes: Tensor, config: ClassifierConfig, progress: Callable[[int], None] | None = None) -> Classifier:
    """Train on images x [n, C, R, R] with added noise and class numbers [n]. The same seed gives the same network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = Classifier(x.shape[-1], x.shape[1], int(classes.max()) + 1, config.width, config.features)
        optimiser = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        parts = max(1, len(x) // config.batch)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=config.epochs * parts)
        for epoch in range(config.epochs):
            for index in torch.randperm(len(x))[: parts * config.batch].split(config.batch):
                noisy = x[index] + config.noise * torch.randn_like(x[index])
                loss = F.cross_entropy(net(noisy), classes[index], label_smoothing=config.label_smoothing)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                rates.step()
            if progress:
                progress(epoch + 1)
    return net.eval().requires_grad_(False)


def held_out_accuracy(x: Tensor, classes: Tensor, config: ClassifierConfig, share: float = 0.2) -> float:
    """Accuracy, from 0 to 1, on a random `share` of two or more images, of a classifier trained on the rest."""
    order, n = torch.randperm(len(x), generator=torch.Generator().manual_seed(config.seed)), max(1, round(share * len(x)))
    held, rest = order[:n], order[n:]
    net = train(x[rest], classes[rest], config)
    return float((net(x[held]).argmax(1) == classes[held]).double().mean())
