"""Docstrings that are filled when their module is imported, such as the environments' tables, on the site."""

import inspect
import pkgutil
import re
from typing import Any

import griffe

TEMPLATE = re.compile(r"\{(table|actions|token_actions|way_actions|size|globals|requests)\}")


class Filled(griffe.Extension):
    """Takes a class's docstring from the imported class where the source's is a template."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called for each class that is read."""
        if cls.docstring and TEMPLATE.search(cls.docstring.value):
            cls.docstring.value = inspect.cleandoc(pkgutil.resolve_name(cls.path).__doc__ or "")
