"""The standard library's ``selectors`` module, with an EpollSelector that is compiled.

A drop-in: ``from fastsock import selectors``. ``DefaultSelector`` is ``EpollSelector``; an event loop of
asyncio takes one as ``asyncio.SelectorEventLoop(selectors.EpollSelector())``.
"""

from selectors import EVENT_READ, EVENT_WRITE, BaseSelector, PollSelector, SelectorKey, SelectSelector

from fastsock._selector import BaseEpollSelector

__all__ = [
    "EVENT_READ",
    "EVENT_WRITE",
    "BaseSelector",
    "DefaultSelector",
    "EpollSelector",
    "PollSelector",
    "SelectSelector",
    "SelectorKey",
]


class EpollSelector(BaseEpollSelector, BaseSelector):
    """Epoll-based selector, with the methods and errors of ``selectors.EpollSelector``.

    Several threads may use one at a time. See epoll(7).
    """


DefaultSelector = EpollSelector
