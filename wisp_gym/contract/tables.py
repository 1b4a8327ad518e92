"""The three tables of observations, by the names that schemas of exported policies give their inputs."""

from wisp_gym.contract import device, request, server

MODULES = {"observation": device, "globals": server, "requests": request}
TABLES = {name: {entry.name: entry for entry in module.ENTRIES} for name, module in MODULES.items()}
