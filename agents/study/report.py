"""A study as one page: who wins where and who loses, figures, and the same tables as CSV and Markdown.

    python -m agents.study report runs/study-quick-1a2b3c4d

writes report.html into the study's folder: one file, its figures inline as SVG; it needs no network and runs no script. Beside
it lie the tables, each as .csv and .md.
"""

from __future__ import annotations

import argparse
import csv
import html
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import wisp_gym
from agents.study.folder import ROWS, read_study
from agents.study.report_figures import figures
from agents.study.report_tables import Table, tables
from agents.study.results import Results
from agents.study.tables import losses, verdict
from wisp_gym.cli import Parser, run
from wisp_gym.errors import InputError
from wisp_gym.files import write_text

PROGRAM = "python -m agents.study report"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
figure { margin: 1.5rem 0; } figure svg { width: 100%; height: auto; } figcaption { color: #555; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; margin: 0.5rem 0 1.5rem; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 2px solid #888; }
.said { font-size: 1.1rem; }
"""


def study_name(folder: Path) -> str:
    """The name of the study in a folder.

    Raises:
        InputError: there is none, or one of another version, whose rows may mean something else.
    """
    study = read_study(folder)
    if study.get("version") != wisp_gym.__version__:
        raise InputError(
            f"'{folder}' holds a study of wisp-gym {study.get('version')}; allowed is one of {wisp_gym.__version__}, this version"
        )
    return str(study["suite"].get("name"))


def read_rows(folder: Path) -> Results:
    """The rows of a finished study.

    Raises:
        InputError: the study is not finished, or its file cannot be read.
    """
    try:
        rows = json.loads((folder / ROWS).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"'{folder / ROWS}': {error.strerror}; allowed is the folder of a finished study") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{folder / ROWS}' is no JSON: {error}") from None
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict) or "cell" not in rows[0]:
        raise InputError(f"'{folder / ROWS}' holds no rows of a study; allowed is the folder of a finished study")
    return Results(rows)


def as_csv(table: Table) -> str:
    """Header and lines; text that the page shows, so numbers are rounded as there."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.header, *table.lines])
    return text.getvalue()


def as_markdown(table: Table) -> str:
    """A table of GitHub's dialect, numbers to the right."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(word.replace("|", "\\|") for word in cells) + " |"

    rule = line(["---", *("--:" for _ in table.header[1:])])
    return "\n".join([f"**{table.title}**", "", line(table.header), rule, *map(line, table.lines)]) + "\n"


def as_html(table: Table) -> str:
    """A heading and a table."""
    head = "".join(f"<th>{html.escape(word)}</th>" for word in table.header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(word)}</td>" for word in line) + "</tr>\n" for line in table.lines
    )
    return (
        f"<h2>{html.escape(table.title)}</h2>\n<p>{html.escape(table.about)}</p>\n"
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n'
    )


def page(name: str, results: Results, shown: Sequence[Table]) -> str:
    """The whole page."""
    drawn = "\n".join(
        f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>" for caption, svg in figures(results)
    )
    said = "".join(f'<p class="said">{html.escape(text)}</p>\n' for text in (verdict(results), losses(results)))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{html.escape(name)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>Study: {html.escape(name)}</h1>\n{said}{drawn}\n"
        f"{''.join(map(as_html, shown))}</body>\n</html>\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and the tables."""
    parser = Parser(prog=PROGRAM, description="One page of a finished study, with its tables as CSV and Markdown.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the study's folder")
    given: argparse.Namespace = parser.parse_args(arguments)
    name = study_name(given.folder)
    results = read_rows(given.folder)
    shown = tables(results)
    written: dict[str, str] = {"report.html": page(name, results, shown)}
    kinds: dict[str, Callable[[Table], str]] = {"csv": as_csv, "md": as_markdown}
    written |= {f"{table.name}.{suffix}": kind(table) for table in shown for suffix, kind in kinds.items()}
    for file, text in written.items():
        write_text(given.folder / file, text)
    print(f"{verdict(results)}\n{losses(results)}\n\n{given.folder / 'report.html'}")


if __name__ == "__main__":
    sys.exit(run(main, PROGRAM))
