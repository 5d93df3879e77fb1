"""Writes the pages that say of every setting and of every option what it is: settings.md and options.md. Run by `make docs`.

They are made from the settings' classes and from the command itself, and a test compares them with these.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from registry.cli import main
from registry.core.settings import Config
from registry.plugins.component import Component
from registry.plugins.loading import load_plugins
from registry.recipe.tables import (
    ClassifierConfig,
    DataConfig,
    EvalConfig,
    GeneratorConfig,
    LogConfig,
    NetworkConfig,
    PretrainConfig,
    StudyConfig,
    TrainConfig,
    WarmupConfig,
)

DOCS = Path(__file__).parent
TABLES: dict[str, tuple[str, dict[str, type[Config]]]] = {
    "A distillation": ("`distill --recipe`", {
        "generator": GeneratorConfig, "warmup": WarmupConfig, "train": TrainConfig, "data": DataConfig,
    }),
    "The training of a teacher": ("`distill pretrain`", {"network": NetworkConfig, "train": PretrainConfig}),
    "The training of a feature network": ("`distill features`", {"classifier": ClassifierConfig}),
    "What a run leaves behind, and how it is measured": ("both", {"log": LogConfig, "eval": EvalConfig, "study": StudyConfig}),
}  # fmt: skip
KINDS = {"teacher": "teacher", "noise": "noise", "loss": "loss", "metric": "eval.", "tracker": "log."}
"""The tables of components, by their kind."""


def settings() -> str:
    """Every setting, as Markdown."""
    lines = [
        "# Every setting", "",
        "What a key of a recipe may be, and what it is by default (–: it must be given). This page is made from the classes of the",
        "settings; [recipes.md](recipes.md) explains a recipe line by line.", "",
    ]  # fmt: skip
    for title, (whose, tables) in TABLES.items():
        lines += [f"## {title}", "", f"For {whose}.", ""]
        for name, config in tables.items():
            lines += [f"### [{name}]", "", *table(config), ""]
    lines += ["## Components", "", "`use` in a table names the component; the other keys are its own. Plugins add theirs.", ""]
    own = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]["entry-points"][
        "distill"
    ]  # not who else is installed
    for kind, place in KINDS.items():
        for entry in load_plugins().registered:
            if entry.kind == kind and isinstance(entry.component, Component) and entry.owner in own:
                component = entry.component
                head = f"[{place}{component.name}]" if place.endswith(".") else f'[{place}] use = "{component.name}"'
                lines += [
                    f"### {head}",
                    "",
                    f"{sentence(component.help)} From the plugin `{entry.owner}`.",
                    "",
                    *table(component.config),
                    "",
                ]
    return "\n".join(lines).rstrip() + "\n"


def table(config: type[Config]) -> list[str]:
    """A row for each setting."""
    schema = config.model_json_schema()
    rows = [
        f"| `{name}` | {default(info)} | {bounds(schema['properties'].get(name, {}))} | {escaped(info.description or '')} |"
        for name, info in config.model_fields.items()
    ]
    return ["| key | default | may be | what it is |", "|---|---|---|---|", *rows] if rows else ["It has no settings."]


def default(info: Any) -> str:
    if info.is_required():
        return "–"
    value = info.get_default(call_default_factory=True)
    return "" if value is None else f"`{toml(value)}`"


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "inf" if math.isinf(value) else f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def bounds(schema: dict[str, Any]) -> str:
    """What values are taken, in words."""
    options = schema.get("anyOf", [schema])
    found = [words for option in options if (words := one(option))]
    return ", or ".join(dict.fromkeys(found))


def one(schema: dict[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{toml(value)}`" for value in schema.get("enum", [schema.get("const")]))
    limits = [
        f"{sign} {schema[key]:.12g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")) if key in schema
    ]  # fmt: skip
    kinds = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`", "array": "list"}
    kind = kinds.get(str(schema.get("type")), "")
    inner = one(schema["items"]) if kind == "list" and isinstance(schema.get("items"), dict) else ""
    return " ".join(filter(None, [kind, f"of: {inner}" if inner else "", " and ".join(limits)]))


def options() -> str:
    """Every command and option, as Markdown."""
    lines = ["# Every option", "", "This page is made from the command; [commands.md](commands.md) explains it.", ""]
    for name, command in commands():
        usage = command.collect_usage_pieces(click.Context(command, info_name=name))
        lines += [f"## {name}", "", f"`{name} {' '.join(usage)}`", "", *described(command.help or ""), ""]
        rows = [
            f"| {', '.join(f'`{flag}`' for flag in (*p.opts, *p.secondary_opts))} | {escaped(p.help)}{choices(p)} |"
            for p in command.params
            if isinstance(p, click.Option) and p.help
        ]
        lines += ["| option | what it does |", "|---|---|", *rows, ""] if rows else []
    return "\n".join(lines).rstrip() + "\n"


def choices(option: click.Option) -> str:
    """What an option may be, if that is a list."""
    listed = option.type.choices if isinstance(option.type, click.Choice) else ()
    return f" One of: {', '.join(f'`{choice}`' for choice in listed)}." if listed else ""


def commands() -> Iterator[tuple[str, click.Command]]:
    yield "distill", main
    for name in sorted(main.commands):
        yield f"distill {name}", main.commands[name]


def described(text: str) -> list[str]:
    """A command's help: paragraphs, and its examples as code."""
    lines: list[str] = []
    for paragraph in text.replace("\b\n", "").strip().split("\n\n"):
        rows = [line.strip() for line in paragraph.splitlines() if line.strip()]
        if all(row.startswith("distill ") for row in rows):
            lines += ["```sh", *(re.sub(r"\s{2,}(?![#\s])", "  # ", row) for row in rows), "```", ""]
        else:
            lines += [" ".join(rows), ""]
    return lines[:-1]


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;").replace("*", "\\*")


PAGES = {"settings.md": settings, "options.md": options}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
