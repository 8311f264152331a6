from collections.abc import Callable
from typing import Any

OVERHEAD: int

class Outbox:
    queued: int
    limit: int
    scheduled: bool
    otherwise: Callable[[Any, Any], None]
    def __init__(self, addressed: int, otherwise: Callable[[Any, Any], None]) -> None: ...
    @property
    def payloads(self) -> list[bytes]: ...
    @property
    def peers(self) -> list[Any]: ...
    def put(self, data: Any, addr: Any = None) -> None: ...
    def forget(self, count: int) -> None: ...
