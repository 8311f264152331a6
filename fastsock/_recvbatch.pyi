from collections.abc import Iterable
from typing import Any

from typing_extensions import Buffer

from fastsock._datagrams import DatagramBatch

class RecvBatch(DatagramBatch):
    def __init__(self, vlen: int = 64, slot_size: int = 2048, *, addresses: bool = False) -> None: ...
    @property
    def vlen(self) -> int: ...
    def load(
        self,
        datagrams: Iterable[Buffer | tuple[Buffer, Any]],
        family: int = 2,
        *,
        ancdata: Iterable[Iterable[tuple[int, int, Buffer]]] | None = None,
    ) -> int: ...
