"""Hooks of the site: pages that lie beside docs/, and links that lead out of it.

A link in a page is one of the checkout, so that it works there and on GitHub. On the site it leads to the page that was made of
its file, or to the file in the repository.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
BESIDE = {"traces.md": "traces/README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
LINK = re.compile(r"(\[[^\]]*\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie beside docs/."""
    for page, source in BESIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links of the checkout into links of the site."""
    here = page.file.src_uri
    folder = (ROOT / BESIDE.get(here, f"docs/{here}")).parent

    def turned(match: re.Match[str]) -> str:
        path = folder / match[2]
        if re.match(r"[a-z]+:", match[2]) or not path.exists():
            return match[0]  # what there is not, MkDocs warns of
        return match[1] + moved(path, here, config, files) + match[3]

    return LINK.sub(turned, markdown)


def moved(path: Path, here: str, config: Any, files: Files) -> str:
    """Where a file of the checkout is, seen from a page of the site."""
    place = Path(os.path.normpath(path)).relative_to(ROOT).as_posix()
    pages = {source: page for page, source in BESIDE.items()}
    page = pages.get(place, place.removeprefix("docs/"))
    if place in pages or (place.startswith("docs/") and files.get_file_from_path(page)):
        return os.path.relpath(page, os.path.dirname(here) or ".")
    kind = "tree" if path.is_dir() else "blob"
    return f"{config.repo_url.rstrip('/')}/{kind}/main/{place}"
