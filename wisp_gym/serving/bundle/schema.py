"""The schema of a policy bundle: what the policy sees, what its actions mean, where it comes from. Strict JSON.

It lies in the ONNX file's metadata under `wisp_gym_schema`. A runtime refuses a bundle whose features differ from those that it
computes itself: another name, unit, range or order would be silent nonsense.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from wisp_gym.contract.actions import PLAIN_TOKEN_ACTIONS, TOKEN_ACTIONS, WAYS
from wisp_gym.contract.decisions import OF_SERVERS
from wisp_gym.contract.ladders import CHUNK_TOKENS, PRICES, SERVER_TOKENS
from wisp_gym.contract.tables import TABLES
from wisp_gym.errors import InputError

FORMAT, VERSION = "wisp-gym policy bundle", 2
KEY, SEAL = "wisp_gym_schema", "sha256"  # keys of the file's metadata
MAX_TEXT = 65_536

TOKEN, LENGTH, ORDER = "token", "length", "order"
TOKEN_WAY, LENGTH_WAY = "token-way", "length-way"
OF_DEVICES = (TOKEN, LENGTH, TOKEN_WAY, LENGTH_WAY)
SCORERS = tuple(OF_SERVERS)
MOST_DRAFT_TOKENS = 32  # as in the engine
MOST_REQUESTS = 4096  # of a queue that one decision looks at

FALLBACK = dict.fromkeys(OF_DEVICES, ("threshold",)) | dict.fromkeys((ORDER, *SCORERS), ("margin", "window"))
ORDER_OUTPUTS = [
    "key: smaller ones are asked first, among those that lead and then among the others",
    "leads: joins in any case; the others join while no limit is passed",
    "limit: longest predicted batch that the request allows, in mean batch times",
]


class BundleError(InputError):
    """A bundle that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Origin:
    """Where a policy comes from; empty texts where it is not known.

    Attributes:
        commit: of the sources that trained it ("+changes" where they were edited). scenario: its name.
        scenario_sha256: of the whole scenario as TOML. made_by: the rule, or the run folder's name.
    """

    made_by: str
    commit: str
    scenario: str
    scenario_sha256: str


@dataclass(frozen=True)
class Schema:
    """What a bundle says of itself.

    Attributes:
        decision: "token" (after each drafted token), "length" (once a round), "token-way" and "length-way" (how the round ends
            too), "order" (of the requests of a batch), "batching" (request by request), "joint" (which sets the price of a draft
            token too), "batching-hosting" and "joint-hosting" (for whom the server drafts, and how long, too).
        learned: a trained policy, else a rule.
        inputs: features of each input of the graph, as [name, unit, low, high].
        actions: meaning of each action by its number; of an order, of its outputs; of a scorer, of all but those of a request.
        max_draft_tokens: cap K in which the features count tokens, 1 to 32.
        fallback: numbers of WISP's heuristic, which takes over when an input cannot be used.
        origin: where it comes from.
    """

    decision: str
    learned: bool
    inputs: dict[str, list[list[Any]]]
    actions: list[str]
    max_draft_tokens: int
    fallback: dict[str, float]
    origin: Origin
    format: str = field(default=FORMAT)
    version: int = field(default=VERSION)


def features_of(table: str, names: Sequence[str] = ()) -> list[list[Any]]:
    """Features of an input as a schema lists them: [name, unit, low, high].

    Args:
        table: "observation", whose features are fixed, or another of `TABLES`, of which `names` are taken.
    """
    entries = TABLES[table]
    chosen = entries if table == "observation" else names
    return [[e.name, e.unit, float(e.low), float(e.high)] for e in (entries[name] for name in chosen)]


def dump(schema: Schema) -> str:
    """A schema as JSON; equal schemas give equal text."""
    return json.dumps(asdict(schema), sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def parse(text: str) -> Schema:
    """The schema of a JSON text that this version can serve.

    Raises:
        BundleError: not strict JSON, unknown or missing keys, another version, other features; one line.
    """
    if len(text) > MAX_TEXT:
        raise BundleError(f"schema: {len(text)} characters, allowed are {MAX_TEXT}")
    try:
        document = json.loads(text, object_pairs_hook=unique, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"schema: not strict JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(f"schema: 'format' must be {FORMAT!r}")
    if document.get("version") != VERSION or isinstance(document["version"], bool):
        raise BundleError(f"schema: version given {document.get('version')!r}, allowed is {VERSION}")
    keys(document, Schema, "schema")
    keys(document["origin"], Origin, "schema: origin")
    check(document)
    return Schema(**{**document, "origin": Origin(**document["origin"])})


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object none of whose keys comes twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def refuse_constant(text: str) -> float:
    """JSON's NaN and infinities are not numbers."""
    raise ValueError(f"{text} is not a number")


def keys(document: Any, cls: type, where: str) -> None:
    """Exactly the fields of a dataclass."""
    wanted = {f.name for f in fields(cls)}
    given = set(document) if isinstance(document, dict) else set()
    if given != wanted:
        extra, missing = sorted(given - wanted), sorted(wanted - given)
        raise BundleError(f"{where}: missing {missing}, not allowed {extra}; allowed are {sorted(wanted)}")


def check(document: dict[str, Any]) -> None:
    """Values of a schema."""
    decision = document["decision"]
    if not isinstance(decision, str) or decision not in FALLBACK:
        raise BundleError(f"schema: decision given {decision!r}, allowed are {', '.join(FALLBACK)}")
    if not isinstance(document["learned"], bool):
        raise BundleError(f"schema: learned given {document['learned']!r}, allowed are true and false")
    cap = document["max_draft_tokens"]
    if isinstance(cap, bool) or not isinstance(cap, int) or not 1 <= cap <= MOST_DRAFT_TOKENS:
        raise BundleError(f"schema: max_draft_tokens given {cap!r}, allowed is 1 to {MOST_DRAFT_TOKENS}")
    if document["actions"] != actions_of(decision, cap):
        raise BundleError(f"schema: actions given {document['actions']!r}, allowed are {actions_of(decision, cap)}")
    check_inputs(document["inputs"], decision)
    check_fallback(document["fallback"], FALLBACK[decision])
    for name, value in document["origin"].items():
        if not isinstance(value, str):
            raise BundleError(f"schema: origin: {name} given {value!r}, allowed is text")


def check_inputs(inputs: Any, decision: str) -> None:
    """Features that this runtime computes: all of the observation in its order, or some of the queue's."""
    names = set(inputs) if isinstance(inputs, dict) else set()
    queue = [{"requests", "globals"}] if decision in SCORERS else [{"requests"}, {"requests", "globals"}]
    allowed = [{"observation"}] if decision in OF_DEVICES else queue
    if names not in allowed:
        wanted = [sorted(a) for a in allowed]
        raise BundleError(f"schema: inputs given {sorted(names)}, allowed for '{decision}' are {wanted}")
    for name in sorted(names):
        check_features(name, inputs[name])
        given, all_ = len(inputs[name]), len(TABLES[name])
        if decision in SCORERS and given != all_:
            raise BundleError(f"schema: {name}: given {given} features, allowed are all {all_}")


def check_features(table: str, given: Any) -> None:
    """The features of one input."""
    is_list = isinstance(given, list) and 1 <= len(given) <= 256
    if not is_list or not all(isinstance(row, list) and row for row in given):
        raise BundleError(f"schema: {table}: given {str(given)[:80]}, allowed is a list of [name, unit, low, high]")
    names = [row[0] for row in given]
    unknown = [name for name in names if not isinstance(name, str) or name not in TABLES[table]]
    if table != "observation" and unknown:
        raise BundleError(f"schema: {table}: unknown feature {unknown[0]!r}; allowed: {', '.join(TABLES[table])}")
    wanted = features_of(table, names)
    if given != wanted or len(set(map(str, names))) < len(names):
        pairs = zip(given, wanted, strict=False)
        other = next((f"{a} where {b} stands" for a, b in pairs if a != b), "another number of features")
        raise BundleError(f"schema: {table} differs from what this version computes: {other}")


def check_fallback(fallback: Any, names: tuple[str, ...]) -> None:
    """The numbers of the heuristic."""
    if not isinstance(fallback, dict) or set(fallback) != set(names):
        raise BundleError(f"schema: fallback given {fallback!r}, allowed are the numbers {', '.join(names)}")
    for name, value in fallback.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise BundleError(f"schema: fallback: {name} given {value!r}, allowed is a finite number")


def actions_of(decision: str, max_draft_tokens: int) -> list[str]:
    """Meaning of each action of a decision."""
    if decision in (TOKEN, TOKEN_WAY):
        return list(TOKEN_ACTIONS[: PLAIN_TOKEN_ACTIONS if decision == TOKEN else None])
    if decision == ORDER:
        return list(ORDER_OUTPUTS)
    if decision in SCORERS:
        n_launches, n_lengths = OF_SERVERS[decision]
        launches = [f"launch at a price of {price:g}" for price in PRICES] if n_launches > 1 else ["launch"]
        chunks = [f"prefill at most {tokens} tokens in this batch" for tokens in CHUNK_TOKENS]
        lengths = [f"draft {tokens} tokens at the server in this batch" for tokens in SERVER_TOKENS[:n_lengths]]
        return [*launches, "wait for the next arrival", *chunks, *lengths]
    ways = WAYS if decision == LENGTH_WAY else WAYS[:1]
    return [f"draft {k} tokens, then {way}" for way in ways for k in range(max_draft_tokens + 1)]
