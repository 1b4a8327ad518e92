"""A report as HTML or Markdown: what is said, pictures and tables, set by one template each (page.html.jinja, page.md.jinja)."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=lambda name: bool(name) and ".html." in str(name),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class Table:
    """A table as text cells; a cell between two `**` is set bold.

    Attributes:
        name: of its files, where it is written on its own. title: its heading. about: what a reader of HTML must know.
        header, lines: cells; every line is as long as the header.
    """

    name: str
    title: str
    about: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A picture with its caption: an SVG element to stand inside the page, or the name of a file beside it."""

    caption: str
    svg: str = ""
    file: str = ""


@dataclass(frozen=True)
class Page:
    """A report. title: its heading, "" for a table on its own. said: paragraphs that come first."""

    title: str
    said: Sequence[str]
    pictures: Sequence[Picture]
    tables: Sequence[Table]


def as_html(page: Page) -> str:
    """One file that runs no script and fetches nothing but the pictures beside it."""
    return TEMPLATES.get_template("page.html.jinja").render(page=page)


def as_markdown(page: Page) -> str:
    """The same of GitHub's dialect; pictures that are no files are left out."""
    return TEMPLATES.get_template("page.md.jinja").render(page=page)


def picture_bytes(figure: Figure, kind: str = "png") -> bytes:
    """A drawn figure as a file's content."""
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=130)
    return content.getvalue()
