"""The grammar of controllers' names: text → pieces. What the names mean is looked up elsewhere (`wisp_gym.controllers.lookup`).

    name      = piece {"+" piece}
    piece     = rule [":" value {"," value}] | rule "(" [setting {"," setting}] ")" | policy
    setting   = value | word "=" value          values without a word come first, as in Python
    policy    = name of a shipped policy or choice | path of a policy.json, a choice.json or their run folder

Spaces may stand inside brackets alone. A rule's name always means the rule; a folder of that name is `./NAME`. A path may hold
plus signs, brackets and commas.
"""

import os
import re
from dataclasses import dataclass

from wisp_gym.controllers.shipped import shipped_choices, shipped_names
from wisp_gym.errors import InputError, of_kind, one_line, shown
from wisp_gym.rules.catalogue import ADDITIONS, ALIASES, BATCHING, CENTRALIZED, SPECULATION

FILE_ENDINGS = (".json", ".onnx", ".zip")
RULE = re.compile(r"(?P<name>[^:+()]*)(:(?P<short>[^+]*)|\((?P<long>[^()]*)\))?(?=\+|\Z)")
RULES = {*SPECULATION, *BATCHING, *CENTRALIZED, *ADDITIONS, *ALIASES}


class ControllerError(InputError):
    """A controller's name that cannot be understood; the message is one line."""


def fault(name: str, reason: str) -> ControllerError:
    """The error of a name, in one line."""
    return ControllerError(one_line(f"controller '{name}': {reason}"))


@dataclass(frozen=True)
class Piece:
    """A piece of a controller's name, as written.

    Attributes:
        text: all of it. name: the rule, or the saved policy: a shipped one's name, or a path.
        positional: values without a word. keywords: (word, value) of the others, in order.
    """

    text: str
    name: str
    positional: tuple[str, ...] = ()
    keywords: tuple[tuple[str, str], ...] = ()
    is_policy: bool = False


def parse(text: str) -> list[Piece]:
    """The pieces of a name, at least one.

    Raises:
        ControllerError: the text follows no rule of the grammar.
    """
    of_kind("controller", text, str, ControllerError)
    if "\0" in text:
        raise ControllerError(f"controller: given {shown(text)}, allowed are characters that a file's name may have")
    pieces: list[Piece] = []
    start = 0
    while start <= len(text):
        rest = text[start:]
        end = policy_end(rest)
        pieces.append(Piece(rest[:end], rest[:end], is_policy=True) if end else rule_piece(rest, text))
        start += len(pieces[-1].text) + 1
    return pieces


def one_piece(text: str) -> Piece:
    """The piece of a text that is a single one, such as a batching rule.

    Raises:
        ControllerError: it is none, or several.
    """
    first, *more = parse(text)
    if more:
        raise fault(text, f"given {1 + len(more)} rules joined by '+', allowed is one")
    return first


def is_policy(text: str) -> bool:
    """Whether a name is that of a saved policy alone (a file, a run folder, a shipped one).

    Raises:
        ControllerError: it follows no rule of the grammar.
    """
    first, *more = parse(text)
    return first.is_policy and not more


def outside(text: str, separator: str) -> list[str]:
    """The parts of a text between the separators that stand outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth = max(depth + (letter == "(") - (letter == ")"), 0)
        if letter == separator and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


# --- saved policies --------------------------------------------------------------------------------------------------


def policy_end(rest: str) -> int:
    """Where the saved policy ends that a text begins with; 0 where it begins with none.

    Of a path it is the longest that exists, else the shortest that ends as a file, else, with a slash in it, all up to a
    known name.
    """
    head = head_of(rest)
    if head in RULES or head in saved_names():
        return len(head) if head not in RULES and rest[len(head) : len(head) + 1] in ("", "+") else 0
    ends = [match.start() for match in re.finditer(r"\+|\Z", rest)]
    limit = next(end for end in ends if end == len(rest) or head_of(rest[end + 1 :]) in {*RULES, *saved_names()})
    there = [end for end in ends if os.path.exists(rest[:end])]
    named = [end for end in ends if end <= limit and rest[:end].endswith(FILE_ENDINGS)]
    return there[-1] if there else named[0] if named else limit if "/" in rest[:limit] else 0


def saved_names() -> tuple[str, ...]:
    """Names of all that is shipped: policies, and choices between controllers."""
    return (*shipped_names(), *shipped_choices())


def head_of(rest: str) -> str:
    """The text up to its first colon, plus sign or bracket."""
    return re.split(r"[:+()]", rest, maxsplit=1)[0]


# --- rules -----------------------------------------------------------------------------------------------------------


def rule_piece(rest: str, whole: str) -> Piece:
    """The rule that a text begins with, up to a plus sign or the end; `whole` is the name, for messages."""
    match = RULE.match(rest)
    if not match:
        raise fault(whole, bracket_fault(rest))
    name, short, long = match["name"], match["short"] or "", match["long"] or ""
    if not name.strip():
        raise fault(whole, "a rule is empty; allowed: speculation+batching, such as 'fixed:4+fcfs'")
    if name.split() != [name]:
        raise fault(whole, f"given a space in '{name}', allowed inside brackets alone")
    if "=" in short:
        raise fault(whole, f"settings by name stand in brackets: '{name}({short})'")
    return Piece(match[0], name, *settings(short or long, whole))


def settings(inside: str, whole: str) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Values without a word, and (word, value) of those with one."""
    positional: list[str] = []
    keywords: list[tuple[str, str]] = []
    for text in inside.split(",") if inside.strip() else []:
        word, equals, value = (part.strip() for part in text.partition("="))
        if not word or (equals and not value):
            raise fault(whole, f"a setting is empty in '{inside}'")
        if equals:
            keywords.append((word, value))
        elif keywords:
            raise fault(whole, f"'{word}' follows '{keywords[-1][0]}='; allowed are values without a name first")
        else:
            positional.append(word)
    return tuple(positional), tuple(keywords)


def bracket_fault(rest: str) -> str:
    """What is wrong with the brackets of a text that is no rule."""
    before, _, after = rest.partition("(")
    inside, closed, behind = after.partition(")")
    if ")" in before:
        return f"')' without '(' in '{before}'"
    if not closed:
        return f"'(' is not closed in '{rest}'"
    if "(" in inside:
        return f"brackets inside brackets in '{rest}'"
    return f"'{behind}' follows ')'; allowed is '+' and another rule, or the end"
