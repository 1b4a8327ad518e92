"""Batching rules as ONNX graphs: in which order waiting requests join a batch, which join in any case, how long a batch each allows.

The formulas of `wisp_gym.rules.batching` on the features of the queue, times in mean batch times T.
"""

from collections.abc import Callable, Sequence

import numpy as np

from wisp_gym.contract import server
from wisp_gym.contract.tables import TABLES
from wisp_gym.rules import batching as rules
from wisp_gym.serving.export.graph import Graph
from wisp_gym.serving.wisp import NO_LIMIT

Answer = tuple[str, str, str]  # key, leads, limit, each (Q, 1)


class QueueGraph(Graph):
    """A graph over columns of the requests (Q, features), and of the server's own features (1, …).

    Args:
        requests, server: names of the features that are read. parameters: of the rule.
    """

    def __init__(self, requests: Sequence[str], server: Sequence[str], parameters: Sequence[float]):
        super().__init__()
        self.parameters = parameters
        self.names = {"requests": list(requests), "globals": list(server)}
        self.inputs = {table: self.clipped(table) for table, names in self.names.items() if names}

    def clipped(self, table: str) -> str:
        """An input within its ranges."""
        features = [TABLES[table][name] for name in self.names[table]]
        return self.within(table, [f.low for f in features], [f.high for f in features])

    def see(self, name: str, table: str = "requests") -> str:
        """(Q, 1) of a feature, or (1, 1) of the server's."""
        return self.column(self.inputs[table], self.names[table].index(name))

    def number(self, value: float) -> str:
        """(1, 1) constant."""
        return self.constant([[value]], np.float32)

    def all_lead(self, key: str) -> Answer:
        """Every request joins in any case, in the order of `key`."""
        nothing = self.op("Mul", key, self.number(0.0))
        return key, self.op("LessOrEqual", nothing, self.number(0.0)), self.op("Add", nothing, self.number(NO_LIMIT))

    def limit(self, slack: str, latest: str, margin: float) -> str:
        """Longest batch that meets a request's deadline; any where it is late even alone."""
        met = self.op("Div", slack, self.number(1.0 + margin))
        return self.op("Where", self.op("Less", slack, latest), self.number(NO_LIMIT), met)

    def answer(self, key: str, leads: str, limit: str) -> None:
        """The outputs, (Q,) each."""
        for value, name in ((key, "key"), (leads, "leads"), (limit, "limit")):
            self.op("Squeeze", value, self.constant([1], np.int64), output=name)


def fcfs(g: QueueGraph) -> Answer:
    """In order of arrival."""
    return g.all_lead(g.op("Neg", g.see("waiting")))


def edf(g: QueueGraph) -> Answer:
    """Earliest deadline first."""
    return g.all_lead(g.see("slack"))


def least_laxity(g: QueueGraph) -> Answer:
    """Earliest latest start first."""
    return g.all_lead(g.op("Sub", g.see("slack"), g.see("solo")))


def edf_demoted(g: QueueGraph) -> Answer:
    """Earliest deadline first; what is late by more than late_s joins last, and makes no other one late."""
    slack, solo = g.see("slack"), g.see("solo")
    late_s = g.parameters[0] / server.SCALE[server.MEAN_BATCH_TIME]
    late = g.op("Div", g.number(late_s), g.see("mean_batch_time", "globals"))
    return slack, g.op("LessOrEqual", solo, g.op("Add", slack, late)), g.limit(slack, solo, 0.0)


def wisp(g: QueueGraph) -> Answer:
    """WISP: urgent requests by deadline, then by goodput density what makes nobody late."""
    margin, window = g.parameters
    slack, solo = g.see("slack"), g.see("solo")
    latest = g.op("Mul", solo, g.number(1.0 + margin))
    leads = g.op("LessOrEqual", g.op("Sub", slack, latest), g.number(window))
    density = g.op("Neg", g.op("Div", g.see("expected_tokens"), g.op("Max", solo, g.number(1e-6))))
    return g.op("Where", leads, slack, density), leads, g.limit(slack, latest, margin)


# The rule, and the features that it reads of each request and of the server.
RULES: dict[int, tuple[Callable[[QueueGraph], Answer], tuple[str, ...], tuple[str, ...]]] = {
    rules.FCFS: (fcfs, ("waiting",), ()),
    rules.EDF: (edf, ("slack",), ()),
    rules.LEAST_LAXITY: (least_laxity, ("slack", "solo"), ()),
    rules.EDF_DEMOTED: (edf_demoted, ("slack", "solo"), ("mean_batch_time",)),
    rules.WISP: (wisp, ("slack", "solo", "expected_tokens"), ()),
}


def queue_graph(kind: int, parameters: Sequence[float]) -> QueueGraph:
    """The graph of a rule of `RULES`."""
    rule, requests, server = RULES[kind]
    g = QueueGraph(requests, server, parameters)
    g.answer(*rule(g))
    return g
