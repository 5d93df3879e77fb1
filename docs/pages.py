"""mkdocs' hooks: pages of the repository outside of docs/ become pages of the site, and code that a page links to a file in it."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "project.md",
    "CHANGELOG.md": "changelog.md",
    "recipes/README.md": "recipes-of-the-papers.md",
    "benchmarks/RESULTS.md": "results.md",
}
"""By their path in the repository: their path in the site."""
LINK = re.compile(r"(\]\()(?!https?://|#)([^)#\s]+)(#[^)\s]*)?(\))")


def links(text: str, folder: str) -> list[str]:
    """The paths in the repository that a page links to, which lies in this folder of it."""
    return [posixpath.normpath(posixpath.join(folder, found[2])) for found in LINK.finditer(text)]


def place(path: str) -> str:
    """Where a path of the repository is in the site."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path}{'.txt' if (ROOT / path).suffix in ('.py', '.toml', '.sh', '.md') else ''}"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and what any page links to."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    for path in [f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")] + list(PAGES):
        for target in links((ROOT / path).read_text(), posixpath.dirname(path)):
            new = not target.startswith("docs/") and files.get_file_from_path(place(target)) is None
            if new and (ROOT / target).is_file():
                files.append(File.generated(config, place(target), content=(ROOT / target).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Send links to where their targets are in the site."""
    own = next((path for path, name in PAGES.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(own), link[2]))
        return f"{link[1]}{place(target)}{link[3] or ''}{link[4]}"

    return LINK.sub(moved, markdown)
