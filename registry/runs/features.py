"""Train the feature network of the Fréchet distance, from the recipe to its file."""

from __future__ import annotations

import os
from pathlib import Path

from registry.core.errors import Diverged, SettingError
from registry.core.version import versions
from registry.files.formats import save_network
from registry.measure import classifier
from registry.plugins.loading import load_plugins
from registry.recipe.arguments import Given, Sets, recipe_of
from registry.recipe.resolved import FeaturesRecipe, settings_of
from registry.runs.building import check_target
from registry.show.images import read_images
from registry.show.journal import Journal


def train_features(
    recipe: Given | FeaturesRecipe, *, sets: Sets = (), save: str | os.PathLike[str], journal: Journal | None = None
) -> Path:
    """Train the feature network of the Fréchet distance as a recipe says, and save it. See `distill` for the arguments.

    Raises UserError, and Diverged if the network gives values that are not finite.
    """
    recipe = recipe_of(FeaturesRecipe, recipe, load_plugins(), sets)
    journal, path, config = journal or Journal(), check_target(save), recipe.classifier
    images = read_images(recipe.data.source)
    if images.classes is None:
        with settings_of(recipe.data):
            raise SettingError("source", "a classifier needs labels, and this set has none", recipe.data.source)
    if len(images) < 2:
        with settings_of(recipe.data):
            raise SettingError("source", "has one image, and none to hold out", recipe.data.source)
    if images.image_shape[-1] not in classifier.RESOLUTIONS:
        few, most = classifier.RESOLUTIONS[0], classifier.RESOLUTIONS[-1]
        what = f"has images of {images.image_shape[-1]} pixels a side, and this network is for {few} to {most}"
        with settings_of(recipe.data):
            raise SettingError("source", f"{what}; larger ones have the features of inception", recipe.data.source)
    accuracy = classifier.held_out_accuracy(images.x(), images.classes, config)
    journal.log(f"accuracy on a held-out fifth: {accuracy:.1%}; now training on all {len(images)} images")
    with journal.progress("training the feature network", config.epochs) as bar:
        net = classifier.train(images.x(), images.classes, config, bar.at)
    if not net(images.x()).isfinite().all():
        raise Diverged(
            "the feature network gives values that are not finite; a smaller lr keeps them so", len(images) * config.epochs
        )
    facts = {"held_out_accuracy": accuracy, "recipe": recipe.tables(), "versions": versions()}
    save_network(path, "classifier", net, facts)
    journal.log(f"the feature network is in {path}")
    return path
