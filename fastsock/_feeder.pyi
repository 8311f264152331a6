from fastsock._ring import Ring
from fastsock._socket import BaseSocket

class Feeder(Ring):
    def __init__(
        self,
        sock: BaseSocket,
        *,
        slots: int,
        slot_size: int,
        vlen: int | None,
        addresses: bool,
        cpu: int,
        priority: int,
        spin_us: float,
        coalesce_us: float,
        name: str,
    ) -> None: ...
    def ask_to_stop(self) -> None: ...
    def ask_to_close(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
