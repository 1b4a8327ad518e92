"""A study as one page: who wins where and who loses, figures, and the same tables as CSV and Markdown.

    python -m agents.study report runs/study-quick-1a2b3c4d

writes report.html into the study's folder: one file, its figures inline as SVG; it needs no network and runs no script. Beside
it lie the tables, each as .csv and .md.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from agents.study.folder import ROWS, read_json, read_study
from agents.study.page import Page, Table, as_html, as_markdown
from agents.study.report_figures import figures
from agents.study.report_tables import tables
from agents.study.results import Results
from agents.study.tables import losses, verdict
from wisp_gym import __version__
from wisp_gym.cli import Parser
from wisp_gym.errors import InputError
from wisp_gym.files import write_text

PROGRAM = "python -m agents.study report"


def study_name(folder: Path) -> str:
    """The name of the study in a folder.

    Raises:
        InputError: there is none, or one of another version, whose rows may mean something else.
    """
    study = read_study(folder)
    if (version := study.get("version")) != __version__:
        raise InputError(
            f"'{folder}' holds a study of wisp-gym {version}; allowed is one of {__version__}, this version"
        )
    return str(study["suite"].get("name"))


def read_rows(folder: Path) -> Results:
    """The rows of a finished study.

    Raises:
        InputError: the study is not finished, or its file cannot be read.
    """
    rows = read_json(folder, ROWS, "finished study")
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict) or "cell" not in rows[0]:
        raise InputError(f"'{folder / ROWS}' holds no rows of a study; allowed is the folder of a finished study")
    return Results(rows)


def as_csv(table: Table) -> str:
    """Header and lines; text that the page shows, so numbers are rounded as there."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.header, *table.lines])
    return text.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and the tables."""
    parser = Parser(prog=PROGRAM, description="One page of a finished study, with its tables as CSV and Markdown.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the study's folder")
    folder: Path = parser.parse_args(arguments).folder
    name, results = study_name(folder), read_rows(folder)
    said, shown = [verdict(results), losses(results)], tables(results)
    write_text(folder / "report.html", as_html(Page(f"Study: {name}", said, figures(results), shown)))
    for table in shown:
        write_text(folder / f"{table.name}.csv", as_csv(table))
        write_text(folder / f"{table.name}.md", as_markdown(Page("", [], [], [table])))
    print("\n".join([*said, "", str(folder / "report.html")]))
