"""A Grafana dashboard of a verification server and of vLLM's steered speculation, ready to import.

    wisp-gym dashboard -o dashboard.json

Grafana asks for a Prometheus data source; the variable `job` chooses among the jobs that scrape. docs/serving/steering.md
"""

from collections.abc import Sequence
from pathlib import Path

from wisp_gym.cli import Parser, output_file
from wisp_gym.files import read_text, write_text

PROGRAM = "wisp-gym dashboard"
DASHBOARD = Path(__file__).resolve().parents[1] / "data" / "dashboards" / "grafana.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write it."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument("-o", "--output", type=output_file(".json"), metavar="FILE", help="default: standard output")
    given = parser.parse_args(arguments)
    text = read_text(DASHBOARD)
    if given.output is None:
        print(text, end="")
        return
    write_text(given.output, text)
    print(f"wrote {given.output.name}")
