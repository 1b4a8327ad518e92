"""A study's folder: what it is (study.json) and every world that has been run (worlds.jsonl), so that a killed study goes on.

Finished chunks are appended in a fixed order, one line each. A line that a kill cut short is dropped and run again, so the
file ends up with the same bytes as without the kill.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from agents.study.sources import code_digest
from agents.study.suite import file_digests
from wisp_gym import __version__
from wisp_gym.controllers.lookup import parts_of
from wisp_gym.controllers.shipped import policy_path
from wisp_gym.errors import InputError
from wisp_gym.files import holds_files, read_text, write_text

STUDY, WORLDS, ROWS, LOCK = "study.json", "worlds.jsonl", "rows.json", ".lock"
FORMAT = 1
Key = tuple[str, ...]
Told = dict[str, Any]


def policies_of(controllers: Sequence[str]) -> Told:
    """SHA-256 of the policy files among controllers."""
    found = {policy_path(part.name) for name in controllers for part in parts_of(name) if part.is_policy}
    return file_digests(file for file in found if file.is_file())


def told(suite: Told, policies: Told) -> Told:
    """What a study is: results are the same where this is the same."""
    return {"format": FORMAT, "version": __version__, "code": code_digest(), "suite": suite, "policies": policies}


def default_folder(study: Told) -> Path:
    """`runs/study-NAME-…`, with a digest of what the study is: the same command finds its folder again."""
    digest = hashlib.sha256(json.dumps(study, sort_keys=True).encode()).hexdigest()
    return Path("runs") / f"study-{study['suite']['name']}-{digest[:8]}"


def read_study(folder: Path) -> Told:
    """What the study in a folder is.

    Raises:
        InputError: there is none, or none that can be read.
    """
    study = read_json(folder, STUDY, "study")
    if not isinstance(study, dict) or study.get("format") != FORMAT or not isinstance(study.get("suite"), dict):
        raise InputError(f"'{folder / STUDY}' is no study of format {FORMAT}; allowed is a study's folder")
    return study


def read_json(folder: Path, name: str, what: str) -> Any:
    """What a JSON file of a study's folder holds; `what` names it to those who look for it elsewhere.

    Raises:
        InputError: there is none, or none that can be read.
    """
    try:
        return json.loads(read_text(folder / name))
    except OSError as error:
        raise InputError(
            f"'{folder}' holds no {what}: {name}: {error.strerror}; allowed is the folder of one"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{folder / name}' is no JSON: {error}") from None


def refuse_other(folder: Path, there: Told, ours: Told) -> None:
    """Refuse to go on with a study that is not this one.

    Raises:
        InputError: names the first difference.
    """
    inner = [("suite." + key, there["suite"].get(key), ours["suite"][key]) for key in ours["suite"]]
    for key, old, new in [*((key, there.get(key), ours[key]) for key in ours if key != "suite"), *inner]:
        if old != new:
            shown = "" if len(f"{old}{new}") > 60 else f" ({old} there, {new} here)"
            raise InputError(f"'{folder}' holds another study: its {key} differs{shown}; allowed is a new folder")


class Worlds:
    """The finished chunks of a study: key (a few strings) → list of JSON values, one for each world."""

    def __init__(self, file: Any):
        self.file = file
        self.known: dict[Key, list[Any]] = {}
        whole = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                key, *values = json.loads(line)
                self.known[tuple(key)] = values
            except (ValueError, TypeError, RecursionError):  # no kill does that
                words = "is damaged; allowed is to remove it and all below, which are run again"
                raise InputError(f"'{file.name}': line {number} {words}") from None
            whole += len(line)
        file.truncate(whole)
        file.seek(whole)

    def add(self, key: Key, values: list[Any]) -> None:
        """Keep a finished chunk."""
        self.known[key] = values
        self.file.write(json.dumps([key, *values], allow_nan=False).encode() + b"\n")
        self.file.flush()


@contextlib.contextmanager
def opened(folder: Path, study: Told) -> Iterator[Worlds]:
    """The worlds of the study in this folder, which is made where there is none.

    Raises:
        InputError: the folder holds something else or cannot be written, or another process is at work in it.
    """
    with contextlib.ExitStack() as stack:
        try:
            if folder.is_dir() and holds_files(folder):
                refuse_other(folder, read_study(folder), study)
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / STUDY).exists():
                write_text(folder / STUDY, json.dumps(study, indent=2) + "\n")
            (folder / WORLDS).touch()
            stack.enter_context(FileLock(folder / LOCK, blocking=False))
        except Timeout:
            raise InputError(f"'{folder}' is in use by another run; allowed: wait for it, or a new folder") from None
        except OSError as error:
            raise InputError(f"cannot write '{folder}': {error.strerror}; allowed is a writable folder") from None
        yield Worlds(stack.enter_context((folder / WORLDS).open("rb+")))
