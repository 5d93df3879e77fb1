"""A package to begin a plugin with, from the templates in recipes/starters/plugin/."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

from registry.core.atomic import new_folder
from registry.core.errors import SettingError, UserError
from registry.core.templates import template
from registry.core.version import DISTRIBUTION
from registry.plugins.hooks import HOOKS

FILES = {
    "pyproject.toml": "pyproject.toml", "README.md": "README.md", "src/{name}/__init__.py": "{kind}.init.py",
    "src/{name}/{kind}.py": "{kind}.py", "tests/test_{name}.py": "{kind}.test.py", "recipes/{name}.toml": "{kind}.recipe.toml",
}  # fmt: skip
"""Path in the package: template, both with places for its name and kind. A template that is not there is left out."""


def begin_plugin(typed: str, kind: str, templates: Path, parent: Path) -> Path:
    """Write the package into a new folder, whose name is what was typed. Raises UserError, and then leaves nothing."""
    name = typed.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,60}", name) or keyword.iskeyword(name) or name in HOOKS:
        raise SettingError("name", "must be small letters, digits and - or _, such as my_loss", typed)
    if name in sys.stdlib_module_names or name in packages_distributions() or find_spec(name):
        raise SettingError("name", "is the name of another package here", typed)
    folder = parent / typed
    if folder.exists():
        raise UserError(f"{folder}: is there already; give another name")
    with new_folder(folder) as part:
        for path, file in FILES.items():
            source = templates / f"{file.format(kind=kind)}.j2"
            if source.is_file():
                target = part / path.format(name=name, kind=kind)
                target.parent.mkdir(parents=True, exist_ok=True)
                text = template(source).render(
                    name=name, distribution=name.replace("_", "-"), kind=kind, host=f"{DISTRIBUTION}>=0.1",
                    camel="".join(word.capitalize() for word in name.split("_")).removesuffix("Loss") or "My",
                )  # fmt: skip
                target.write_text(text, encoding="utf-8")
    return folder
