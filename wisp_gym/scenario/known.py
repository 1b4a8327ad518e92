"""What the catalogue knows to go together: servers and drafts of a target, server drafts of both."""

from wisp_gym.scenario.toml import catalogue, is_known


def targets() -> list[str]:
    """Targets that some server is known to verify."""
    return [target for target in catalogue("targets") if servers_of(target)]


def servers_of(target: str) -> list[str]:
    """Servers whose verification time with this target is known."""
    return [server for server, known in catalogue("verification").items() if target in known]


def drafts_of(target: str) -> list[str]:
    """Drafts for devices whose acceptance by this target is known."""
    return [name for name, draft in catalogue("drafts").items() if target in draft["acceptance"]]


def server_drafts_of(server: str, target: str) -> list[str]:
    """What this server can draft with for this target: small models, heads on the target, a search in the text."""
    return [name for name in catalogue("server-drafts") if is_known({"use": name}, server, target)]
