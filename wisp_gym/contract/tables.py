"""The three tables of observations, by the names that schemas of exported policies give their inputs."""

from wisp_gym.contract import device, request, server
from wisp_gym.contract.entry import Entry


def by_name(entries: tuple[Entry, ...]) -> dict[str, Entry]:
    """Entries by their names, in order."""
    return {entry.name: entry for entry in entries}


TABLES = {
    "observation": by_name(device.ENTRIES),
    "globals": by_name(server.ENTRIES),
    "requests": by_name(request.ENTRIES),
}
