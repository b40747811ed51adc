"""An adapter's connection pools, apart from their connections: for a forked child, and for a call that goes alone."""

from __future__ import annotations

import copy
from typing import Any

from requests.adapters import DEFAULT_POOLSIZE, HTTPAdapter
from urllib3 import PoolManager

_parents_pools: list[object] = []


def has_connections(adapter: HTTPAdapter) -> bool:
    """Tell whether *adapter* may have connections of earlier calls; one of another make is not looked into."""
    manager = getattr(adapter, "poolmanager", None)
    return isinstance(manager, PoolManager) and (len(manager.pools) > 0 or bool(adapter.proxy_manager))


def drop_connections(adapter: HTTPAdapter, most: int | None = None) -> None:
    """Give *adapter* pools to *most* hosts, by default as many as it had, that are made as its own but empty.

    What the pools were made with, such as a pinned certificate, stays. The connections stay open: they are somebody
    else's.
    """
    size = getattr(adapter, "_pool_connections", DEFAULT_POOLSIZE) if most is None else most
    proxies = {proxy: _emptied(manager, size) for proxy, manager in adapter.proxy_manager.items()}
    adapter.poolmanager, adapter.proxy_manager = _emptied(adapter.poolmanager, size), proxies


def leave_to_parent(adapter: HTTPAdapter) -> None:
    """Give *adapter* connections of its own in a forked child.

    Two processes on one TLS connection garble it. The parent's pools are kept, untouched: to close them would take
    locks that another thread of the parent may have held.
    """
    _parents_pools.append((adapter.poolmanager, adapter.proxy_manager))
    drop_connections(adapter)


def _emptied(manager: Any, size: int) -> Any:
    if not isinstance(manager, PoolManager):
        return manager  # an adapter's own: it may have no connections
    fresh = copy.copy(manager)
    # A new manager's, as each make of urllib3 has a container of its own for them.
    fresh.pools = PoolManager(size).pools
    return fresh
