"""An asyncio event loop on our selector, whose datagram endpoints are ours. May import _endpoint."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

from fastsock.aio._endpoint import create_datagram_endpoint
from fastsock.selectors import EpollSelector


class EventLoop(asyncio.SelectorEventLoop):
    """asyncio's loop, on ``fastsock.selectors.EpollSelector`` and with ``fastsock.aio``'s datagram endpoints.

    ``asyncio.Runner(loop_factory=fastsock.aio.EventLoop)`` runs a program on it that was not written for it.

    Args:
        selector: Another selector to use.
    """

    __module__ = "fastsock.aio"

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        super().__init__(EpollSelector() if selector is None else selector)

    async def create_datagram_endpoint(self, *arguments: Any, **options: Any) -> Any:
        """``fastsock.aio.create_datagram_endpoint`` on this loop, with all of its options."""
        return await create_datagram_endpoint(*arguments, **options)
