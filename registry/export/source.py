"""Modules of this package as one file that stands alone."""

from __future__ import annotations

import ast
from pathlib import Path

from registry.core import philox
from registry.edm import networks
from registry.export import standalone

HEAD = '''\
# Copyright of the authors of distill. Licensed under the Apache License, Version 2.0; that is the licence of this code alone:
# for the weights beside it, see README.md.
"""A few-step generator in one file. Needs torch and safetensors.

    from modeling import load
    generator = load(".")                      # the folder with config.json and model.safetensors
    images = generator.images(16)              # uint8 [16, H, W, C]; also .sample(seeds=[3, 7]) for values in about [-1, 1]
"""

from __future__ import annotations

'''


def single_file() -> str:
    """The source of the module with which an exported folder is sampled."""
    imports: dict[str, None] = {}
    sections = []
    for module in (networks, philox, standalone):
        text = Path(str(module.__file__)).read_text(encoding="utf-8")
        own, rest = split(text)
        imports |= dict.fromkeys(own)
        sections.append(f"\n\n# {'-' * 40} {module.__name__.rpartition('.')[2]}\n\n{rest}")
    return HEAD + "\n".join(sorted(imports)) + "\n" + "".join(sections)


def split(text: str) -> tuple[list[str], str]:
    """A module's imports but for those of this package, and the rest, without its docstring."""
    imports, lines = [], text.splitlines()
    for number, node in enumerate(ast.parse(text).body):
        match node:
            case ast.Expr(value=ast.Constant()) if number == 0:  # the docstring
                pass
            case ast.ImportFrom(module=str(name)) if name == "__future__" or name.startswith("registry"):
                pass
            case ast.Import() | ast.ImportFrom():
                imports.append(ast.unparse(node))
            case _:
                continue
        assert node.end_lineno is not None
        lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return imports, "\n".join(lines).strip() + "\n"
