"""Speculation rules as ONNX graphs: the formulas of `wisp_gym.controllers`, value by value in the same precision.

The compiled rules read float32 observations and reckon in double precision, but for products of two observations; so do the
graphs, and a test holds their decisions equal.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wisp_gym.contract import device as seen
from wisp_gym.rules import speculation as rules
from wisp_gym.rules.lengths import ALPHA_HIGH, ALPHA_LOW
from wisp_gym.serving.export.graph import DOUBLE, FLOAT, INT64, Graph

LEAST_DRAFT_TIME = 1e-9  # T: no division by zero
MOST_CERTAIN = 1.0 - 1e-9  # of an acceptance probability: where it is 1, the sum of n powers is n to seven digits
Term = tuple[dict[int, float], float]  # factors of entries, and an offset


def binary(operator: str) -> Callable[["RuleGraph", str | float, str | float], str]:
    """A method of a graph that writes an operator of two values, either of which may be a number."""
    return lambda g, a, b: g.op(operator, g.value(a), g.value(b))


class RuleGraph(Graph):
    """A graph in double precision over columns of the observation (n, SIZE).

    Args:
        observation: the value's name. cap: K. parameters: of the rule.
    """

    def __init__(self, cap: int, parameters: Sequence[float]):
        super().__init__()
        self.cap, self.parameters, self.most = cap, parameters, float(cap)
        low = list(seen.LOW)
        low[seen.DRAFT_TIME] = max(low[seen.DRAFT_TIME], LEAST_DRAFT_TIME)
        self.observation = self.within("observation", low, list(seen.HIGH))
        self.may = ""  # whether the round holds one more token, where the rule has computed it already

    @property
    def drafted(self) -> str:
        """(n, 1) drafted tokens, whole numbers but for float32's rounding."""
        return self.times(self.see(seen.DRAFTED_TOKENS), float(self.cap))

    @property
    def left(self) -> str:
        """(n, 1) tokens still wanted."""
        return self.times(self.see(seen.TOKENS_LEFT), seen.SCALE[seen.TOKENS_LEFT])

    def weighted(self, terms: Sequence[Term]) -> list[str]:
        """(n, 1) doubles, each a sum of entries by their factors, plus an offset: three nodes for all of them."""
        weights, offsets = np.zeros((seen.SIZE, len(terms))), [[offset for _, offset in terms]]
        for place, (factors, _) in enumerate(terms):
            for entry, factor in factors.items():
                weights[entry, place] = factor
        sums = self.op("MatMul", self.cast(self.observation, DOUBLE), self.constant(weights, np.float64))
        return self.columns(self.op("Add", sums, self.constant(offsets, np.float64)), len(terms))

    def number(self, value: float) -> str:
        """A constant."""
        return self.constant([[value]], np.float64)

    def see(self, entry: int) -> str:
        """(n, 1) double of one entry."""
        return self.column(self.cast(self.observation, DOUBLE), entry)

    def value(self, given: str | float) -> str:
        """A value's name, of a number too."""
        return given if isinstance(given, str) else self.number(given)

    add, minus, times, over = binary("Add"), binary("Sub"), binary("Mul"), binary("Div")
    least, power, less, at_most = binary("Min"), binary("Pow"), binary("Less"), binary("LessOrEqual")

    def which(self, condition: str, yes: str | float, no: str | float) -> str:
        """`yes` where the condition holds, else `no`."""
        return self.op("Where", condition, self.value(yes), self.value(no))

    def below_most(self, index: int) -> None:
        """Parameter `index` is the rule's own cap: `decode` sees to it that no round holds more."""
        self.most = min(self.parameters[index], self.most)

    def after_first(self, condition: str) -> str:
        """The condition, which does not bind before the first token."""
        return self.op("Or", self.less(self.drafted, 0.5), condition)

    def single(self, value: str) -> str:
        """A double rounded to single precision, as numba has a product of two float32 (which doubles hold exactly)."""
        return self.cast(self.cast(value, FLOAT), DOUBLE)

    def next_survival(self) -> str:
        """`S_j · α`."""
        return self.single(self.times(self.see(seen.SURVIVAL), self.see(seen.ACCEPTANCE_AVERAGE)))


def fixed(g: RuleGraph) -> str:
    """Fewer than k: nothing but the rule's own cap."""
    g.below_most(0)
    return g.less(g.drafted, g.most)


def threshold(entry: int) -> Callable[[RuleGraph], str]:
    """A statistic of the last token is at least the rule's first parameter."""

    def rule(g: RuleGraph) -> str:
        g.below_most(1)
        return g.after_first(g.at_most(g.parameters[0], g.see(entry)))

    return rule


def survival(g: RuleGraph) -> str:
    """SpecDec++."""
    g.below_most(1)
    few = g.less(g.drafted, g.parameters[2] - 0.5)
    return g.op("Or", few, g.at_most(g.minus(1.0, g.see(seen.SURVIVAL)), g.parameters[0]))


def svip(g: RuleGraph) -> str:
    """SVIP; numba takes the root of a float32 in single precision."""
    g.below_most(1)
    root = g.cast(g.op("Sqrt", g.column(g.observation, seen.ENTROPY)), DOUBLE)
    return g.after_first(g.at_most(root, g.parameters[0]))


def price(g: RuleGraph) -> str:
    """The price stop."""
    g.below_most(2)
    rate = g.times(g.times(g.parameters[0], g.see(seen.OWN_RATE)), g.see(seen.DRAFT_TIME))
    return g.less(g.add(g.add(rate, g.parameters[1]), g.see(seen.PRICE)), g.next_survival())


def aligned(g: RuleGraph) -> str:
    """The boundary-aligned price stop: what is paid and what is gained in each of its three cases.

    Each node costs a third of a microsecond, so all entries are taken, with their factors and offsets, at once.
    """
    g.below_most(4)
    least, factor, margin, guard = g.parameters[:4]
    drafted, wanted, least_gain, paid, draft, busy, alpha, survived, room = g.weighted([
        ({seen.DRAFTED_TOKENS: float(g.cap)}, 0.5), ({seen.TOKENS_LEFT: seen.SCALE[seen.TOKENS_LEFT]}, -1.0), ({seen.PRICE: 1.0}, least),
        ({seen.OWN_RATE: factor}, 0.0), ({seen.DRAFT_TIME: 1.0}, 0.0), ({seen.SERVER_BUSY: 1.0}, 0.0), ({seen.ACCEPTANCE_AVERAGE: 1.0}, 0.0),
        ({seen.SURVIVAL: 1.0}, 0.0), ({seen.BOUNDARY_LEFT: 1.0, seen.JITTER: -margin}, -guard),
    ])  # fmt: skip
    g.may = g.less(drafted, g.least(wanted, g.most))
    room = g.minus(room, g.op("Floor", g.least(room, 0.0)))  # the first boundary that can be made
    is_busy = g.less(0.0, busy)
    beyond = g.op("And", is_busy, g.less(room, draft))
    gain, half = g.single(g.times(survived, alpha)), g.over(least_gain, 2.0)
    missed = g.op("Ceil", g.minus(draft, room))
    more = g.minus(g.least(wanted, float(g.cap)), g.op("Floor", drafted))
    n = g.least(g.op("Floor", g.over(g.add(room, missed), draft)), more)
    uncertain = g.least(alpha, MOST_CERTAIN)
    series = g.over(g.times(gain, g.minus(1.0, g.power(uncertain, n))), g.minus(1.0, uncertain))
    beyond_cost = g.add(g.times(paid, missed), g.times(n, half))
    alone = g.add(g.times(paid, draft), half)
    cost = g.which(beyond, beyond_cost, g.which(is_busy, least_gain, alone))
    return g.less(cost, g.which(beyond, series, gain))


def lengths(g: RuleGraph) -> str:
    """(1, K + 1) all lengths."""
    return g.constant([np.arange(g.cap + 1.0)], np.float64)


def acceptance(g: RuleGraph) -> str:
    """(n, 1) the running share of accepted tokens, within (0, 1)."""
    return g.least(g.op("Max", g.see(seen.ACCEPTANCE_AVERAGE), g.number(ALPHA_LOW)), ALPHA_HIGH)


def first_largest(g: RuleGraph, rates: str, most: float) -> str:
    """(n,) the smallest length, at most `most`, with the largest rate; rates (n, K + 1) are positive."""
    allowed = g.at_most(lengths(g), most)
    return g.op("ArgMax", g.op("Where", allowed, rates, g.number(-1.0)), axis=1, keepdims=0)


def leviathan(g: RuleGraph) -> str:
    """The length with the most expected tokens per predicted round time."""
    alpha, k = acceptance(g), lengths(g)
    wait = g.times(g.parameters[0], g.see(seen.UTILISATION))
    # the delay is doubled in single precision, as numba does (exact)
    time = g.add(g.add(1.0, g.times(2.0, g.see(seen.ONE_WAY_DELAY))), wait)
    tokens = g.over(g.minus(1.0, g.power(alpha, g.add(k, 1.0))), g.minus(1.0, alpha))
    rates = g.over(tokens, g.add(g.times(k, g.see(seen.DRAFT_TIME)), time))
    return first_largest(g, rates, min(g.parameters[1], 1e6))


def ratio(g: RuleGraph) -> str:
    """The smallest k at which drafting on no longer pays; K or k_max where it always does."""
    alpha, k = acceptance(g), lengths(g)
    time = g.add(1.0, g.times(2.0, g.see(seen.ONE_WAY_DELAY)))
    growth = g.over(g.minus(g.power(alpha, g.op("Neg", g.add(k, 1.0))), 1.0), g.minus(1.0, alpha))
    enough = g.at_most(time, g.times(g.see(seen.DRAFT_TIME), g.minus(growth, k)))
    last = g.at_most(min(g.parameters[0], float(g.cap)), k)
    stops = g.cast(g.op("Or", enough, last), FLOAT)
    return g.op("ArgMax", stops, axis=1, keepdims=0)


STOPPING: dict[int, Callable[[RuleGraph], str]] = {
    rules.FIXED: fixed,
    rules.CONFIDENCE_RULE: threshold(seen.CONFIDENCE),
    rules.WISP: threshold(seen.ACCEPT_PROBABILITY),
    rules.MARGIN_RULE: threshold(seen.MARGIN),
    rules.SURVIVAL_RULE: survival,
    rules.SVIP: svip,
    rules.PRICE_RULE: price,
    rules.ALIGNED: aligned,
}
LENGTHS: dict[int, Callable[[RuleGraph], str]] = {rules.LEVIATHAN: leviathan, rules.RATIO: ratio}


def round_columns(g: Graph, observation: str, cap: int) -> tuple[str, str]:
    """(n, 1) float32 drafted tokens and tokens still wanted, of an observation that networks see."""
    drafted = g.op("Mul", g.column(observation, seen.DRAFTED_TOKENS), g.constant([[float(cap)]], np.float32))
    left, scale = g.column(observation, seen.TOKENS_LEFT), g.constant([[seen.SCALE[seen.TOKENS_LEFT]]], np.float32)
    return drafted, g.op("Mul", left, scale)


def decode_token(g: Graph, more: str, drafted: str, left: str, most: float, dtype: Any = np.float32) -> None:
    """`action` (n,): 1 to draft one more token where (n, 1) `more` says so and the round may hold it, else 0.

    A round holds at most `most` tokens, and one less than those still wanted.
    """
    decode_flag(g, more, may_hold(g, drafted, left, most, dtype))


def may_hold(g: Graph, drafted: str, left: str, most: float, dtype: Any) -> str:
    """(n, 1) whether a round of so many tokens may hold one more."""
    held = g.op("Min", left, g.constant([[most + 1.0]], dtype))
    return g.op("Less", g.op("Add", drafted, g.constant([[1.5]], dtype)), held)


def decode_flag(g: Graph, more: str, may: str) -> None:
    """`action` (n,): 1 where both (n, 1) conditions hold."""
    g.op("Squeeze", g.cast(g.op("And", more, may), INT64), g.constant([1], np.int64), output="action")


def decode_length(g: Graph, length: str, left: str) -> None:
    """`action` (n,): the length, at most one less than the tokens still wanted."""
    wanted = g.op("Sub", g.op("Squeeze", g.cast(left, INT64), g.constant([1], np.int64)), g.constant([1], np.int64))
    g.op("Max", g.op("Min", length, wanted), g.constant([0], np.int64), output="action")


def rule_graph(kind: int, parameters: Sequence[float], cap: int) -> RuleGraph:
    """The graph of a rule of `STOPPING` or `LENGTHS` with a cap of K draft tokens."""
    g = RuleGraph(cap, parameters)
    if kind in STOPPING:
        more = STOPPING[kind](g)
        decode_flag(g, more, g.may or may_hold(g, g.drafted, g.left, g.most, np.float64))
    else:
        decode_length(g, LENGTHS[kind](g), g.left)
    return g
