"""Recipes: from TOML and overrides to settings that are complete and valid.

tables      the tables that are the host's own, with defaults: [train], [generator], [log], [eval], …
resolved    Recipe, PretrainRecipe, FeaturesRecipe, and a recipe's choice of a component; writing them back as TOML
reading     a file and overrides -> a resolved recipe, or all that is wrong with it
arguments   the same from Python's arguments: paths, names, dicts
evaluation  the settings of an evaluation, from the options of a command
starter     recipes to begin with, for a teacher or images of one's own
problems    what is wrong with a setting, in words
doubts      what is allowed, and hardly meant
"""
