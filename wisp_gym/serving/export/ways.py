"""Decisions that say how a round ends too, as ONNX graphs: what the observation does not allow is left out (`wisp_gym.rules.ways`)."""

import numpy as np

from wisp_gym.contract import device as seen
from wisp_gym.contract.actions import DRAFT, DRAFTS_ON, HANDS_OVER, SENDS, TOKEN_ACTIONS, WAYS
from wisp_gym.serving.export.graph import Graph
from wisp_gym.serving.export.speculation_rules import round_columns

NEVER = -3e38  # a score below all that are finite in single precision, near enough


def decode(g: Graph, scores: str, observation: str, cap: int, by_length: bool) -> None:
    """`action` (n,): the allowed one with the highest of the (n, actions) scores."""
    drafted, left = round_columns(g, observation, cap)
    if by_length:
        lengths = np.tile(np.arange(cap + 1.0), len(WAYS))
        ways = np.repeat(np.arange(len(WAYS)), cap + 1)
        tokens, fits = row(g, lengths), at_least(g, left, row(g, lengths + 1.0))
    else:
        ways = np.array([SENDS, SENDS, DRAFTS_ON, HANDS_OVER])
        tokens, fits = drafted, room(g, drafted, left, cap)
    possible = one_of(g, ways, tokens, observation, left)
    allowed = g.op("Where", g.op("And", fits, possible), scores, g.constant([[NEVER]], np.float32))
    g.op("ArgMax", allowed, axis=1, keepdims=0, output="action")


def row(g: Graph, values: np.ndarray) -> str:
    """(1, actions) constants."""
    return g.constant(values[None], np.float32)


def at_least(g: Graph, tokens: str, least: str) -> str:
    """Whether whole numbers, but for rounding, are at least others."""
    return g.op("Less", least, g.op("Add", tokens, g.constant([[0.5]], np.float32)))


def room(g: Graph, drafted: str, left: str, cap: int) -> str:
    """(n, actions) whether the round has room for what each action drafts: one token of DRAFT alone."""
    more = np.arange(len(TOKEN_ACTIONS)) == DRAFT
    held = g.op("Min", left, g.constant([[cap + 1.0]], np.float32))
    return at_least(g, held, g.op("Add", drafted, row(g, np.where(more, 2.0, -99.0))))


def one_of(g: Graph, ways: np.ndarray, tokens: str, observation: str, left: str) -> str:
    """(n, actions) whether the way of each action is open."""
    flag = g.constant([[0.5]], np.float32)
    on = g.op("Less", flag, g.column(observation, seen.DRAFTS_ON))
    over = g.op("Less", flag, g.column(observation, seen.TAKES_OVER))
    on = g.op("And", on, at_least(g, tokens, g.constant([[1.0]], np.float32)))
    over = g.op("And", over, at_least(g, left, g.constant([[2.0]], np.float32)))
    found = g.op("Less", row(g, np.where(ways == SENDS, 0.0, 1.0)), flag)
    for way, condition in ((DRAFTS_ON, on), (HANDS_OVER, over)):
        chosen = g.op("Less", flag, row(g, np.where(ways == way, 1.0, 0.0)))
        found = g.op("Or", found, g.op("And", chosen, condition))
    return found
