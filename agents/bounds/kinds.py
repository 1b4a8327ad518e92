"""What a controller may know, and who may draft: the kinds of controllers that there are bounds for, by name.

information, perfect, oracle            devices alone draft, before they send
… +overlap                              devices also draft on while a round is away
… +server                               each round is drafted by the session's device, by the server or by nobody
… +server+overlap                       both
colocated                               the server alone, with a draft of its own or without
centralized                             the server alone, without drafts
"""

from dataclasses import dataclass

# What may be known. `information` is the larger of two: all evidence for the predictor's time, the confidence for nothing.
INFORMATION = "information"
LIMITED = ("predictor", "confidence")
KNOWN = (*LIMITED, "perfect", "oracle")
OVERLAP, SERVER = "overlap", "server"  # who may draft besides a device before it sends
CENTRALIZED, COLOCATED = "centralized", "colocated"

BOUNDS = (INFORMATION, "perfect", "oracle", CENTRALIZED)  # of devices alone, and of serving without drafts
SERVER_BOUNDS = (COLOCATED, *(f"{known}+{SERVER}" for known in BOUNDS[:3]))  # where the server can draft
WHO = ("", f"+{OVERLAP}", f"+{SERVER}", f"+{SERVER}+{OVERLAP}")
KINDS = (*(known + who for who in WHO for known in KNOWN), COLOCATED, CENTRALIZED)
NAMES = (*BOUNDS, COLOCATED, *(known + who for who in WHO[1:] for known in BOUNDS[:3]))


@dataclass(frozen=True)
class Kind:
    """A kind of controller.

    Attributes:
        knows: of `KNOWN`. devices, server: who may draft a round. overlap: whether devices draft on while a round is away.
    """

    name: str
    knows: str
    devices: bool = True
    server: bool = False
    overlap: bool = False


def kind_of(name: str) -> Kind:
    """The kind of a name of `KINDS`.

    Raises:
        ValueError: there is no such kind.
    """
    if name not in KINDS:
        raise ValueError(f"kind: given '{name}', allowed: {', '.join(KINDS)}")
    if name in (CENTRALIZED, COLOCATED):
        return Kind(name, LIMITED[0], devices=False, server=True)
    knows, *who = name.split("+")
    return Kind(name, knows, server=SERVER in who, overlap=OVERLAP in who)


def named(knows: str, server: bool = False, overlap: bool = False) -> str:
    """Name of the kind that may know this, of whose rounds the server may draft some, and devices some while they wait."""
    return knows + f"+{SERVER}" * server + f"+{OVERLAP}" * overlap
