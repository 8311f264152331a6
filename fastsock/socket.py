"""The standard library's ``socket`` module, with our class for sockets: ``from fastsock import socket``.

Every name is the standard module's own. Its functions that are written in Python run over the names of this
module, and so make our sockets. The types are in socket.pyi. May import _sock.
"""

import socket as _stdlib
import types as _types

from fastsock import _sock


def _over_our_names(function):
    """The same function, which looks its globals up here."""
    ours = _types.FunctionType(
        function.__code__, globals(), function.__name__, function.__defaults__, function.__closure__
    )
    ours.__kwdefaults__, ours.__doc__ = function.__kwdefaults__, function.__doc__
    ours.__module__ = __name__
    return ours


for _name, _thing in vars(_stdlib).items():
    if not (_name.startswith("__") and _name.endswith("__")):
        _ours = isinstance(_thing, _types.FunctionType) and _thing.__module__ == _stdlib.__name__
        globals()[_name] = _over_our_names(_thing) if _ours else _thing

__all__ = _stdlib.__all__
socket = SocketType = _sock.Socket
