"""The site is built without a warning, every link on it leads somewhere, and what it is made of is on it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

ROOT = Path(__file__).resolve().parents[1]


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := told.get(name))}
        self.links += [value for name in ("href", "src") if (value := told.get(name))]


def build(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder), *flags]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # an advertisement of its theme's
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links if path.name != "404.html" else []:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in pages[target].anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert len(pages) > 50
    assert not broken


def test_links_of_the_checkout_become_links_of_the_site() -> None:
    """To a page of docs/, to one that lies beside it, to a folder's page, and to what is on no page: the repository's file."""
    hooks = runpy.run_path(str(ROOT / "docs" / "site" / "hooks.py"))
    config = SimpleNamespace(repo_url="https://example.org/repo/")
    files = SimpleNamespace(get_file_from_path=lambda path: (ROOT / "docs" / path).is_file())
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guide/scenario.md"))
    links = (
        "[a](names.md#x) [b](../model/model.md) [c](../../traces/README.md#y) [d](../../train.py) [e](https://x.org)"
    )
    turned = hooks["on_page_markdown"](links, page, config, files)
    assert turned == (
        "[a](names.md#x) [b](../model/model.md) [c](../traces.md#y) [d](https://example.org/repo/blob/main/train.py) "
        "[e](https://x.org)"
    )
    beside = SimpleNamespace(file=SimpleNamespace(src_uri="contributing.md"))
    turned = hooks["on_page_markdown"](
        "[a](CHANGELOG.md) [b](docs/guide/names.md#x) [c](agents/)", beside, config, files
    )
    assert turned == "[a](changelog.md) [b](guide/names.md#x) [c](https://example.org/repo/tree/main/agents)"


def test_what_a_reader_looks_for_is_there(site: Path) -> None:
    environments = (site / "api" / "environments" / "index.html").read_text(encoding="utf-8")
    assert environments.count("<table") > 4  # of observations, which are filled in when the module is imported
    assert "{table}" not in environments
    assert 'id="wisp_gym.evaluation.comparison.evaluate"' in (site / "api" / "evaluation" / "index.html").read_text()
    search = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    for word in ("first policy in five minutes", "leaderboard", "kv_tokens_beside"):
        assert word in search.lower()
    assert (site / "traces" / "index.html").is_file()


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    assert "fonts.googleapis.com" not in text
    assert not [link for link in Page(site / "index.html").links if link.endswith((".js", ".css")) and "//" in link]
