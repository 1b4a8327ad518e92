"""Keys and values in the server's memory: prefix cache, least recently used sessions are evicted first."""

from __future__ import annotations

from wisp_gym.jit import jit


@jit
def forget(server, devices, i):
    """Take session i off the list of idle cached sessions (its tokens stay counted)."""
    d = devices[i]
    if d.resident == 0:
        return
    if d.newer >= 0:
        devices[d.newer].older = d.older
    else:
        server.lru_newest = d.older
    if d.older >= 0:
        devices[d.older].newer = d.newer
    else:
        server.lru_oldest = d.newer
    d.resident = 0


@jit
def remember(server, devices, i):
    """Put session i on the list of idle cached sessions as the most recently used."""
    d = devices[i]
    d.newer = -1
    d.older = server.lru_newest
    if server.lru_newest >= 0:
        devices[server.lru_newest].newer = i
    else:
        server.lru_oldest = i
    server.lru_newest = i
    d.resident = 1


@jit
def release(server, devices, i):
    """Free all of session i."""
    forget(server, devices, i)
    server.kv_tokens -= devices[i].cached_tokens
    devices[i].cached_tokens = 0


@jit
def make_room(server, devices, needed_tokens, capacity_tokens):
    """Evict idle sessions, oldest first, until `needed_tokens` more fit; returns how many were evicted."""
    evicted = 0
    while server.kv_tokens + needed_tokens > capacity_tokens and server.lru_oldest >= 0:
        release(server, devices, server.lru_oldest)
        evicted += 1
    return evicted
