"""The package's description: README.md, whose links lead into the checkout, with links that work on a package index."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
LINK = re.compile(r"(!?)(\[[^\]]*\])\((?![a-z]+:)([^)\s]+)\)")


def description() -> str:
    """README.md with absolute links: pictures as files, pages and folders as the repository shows them."""
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]

    def absolute(match: re.Match[str]) -> str:
        kind = "raw" if match[1] else "tree" if match[3].endswith("/") else "blob"
        return f"{match[1]}{match[2]}({repository}/{kind}/main/{match[3].rstrip('/')})"

    return LINK.sub(absolute, (ROOT / "README.md").read_text(encoding="utf-8"))


setup(long_description=description(), long_description_content_type="text/markdown")
