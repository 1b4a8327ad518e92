"""Prompts in files: JSON lines with the key "prompt"."""

import json
from collections.abc import Iterator
from pathlib import Path

from wisp_gym.errors import InputError
from wisp_gym.files import read_text


def read_prompts(file: Path) -> Iterator[str]:
    """The prompts of a file.

    Raises:
        InputError: a file that cannot be read, or a line that is no prompt.
    """
    try:
        lines = read_text(file).splitlines()
    except (OSError, InputError) as error:
        raise InputError(f"--prompts {file}: cannot be read ({error})") from None
    for place, line in enumerate(lines, 1):
        try:
            yield json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{file}:{place}: allowed is a JSON object with the key 'prompt'") from None
