"""Scope ids and flow labels of IPv6, over link-local addresses."""

from conftest import needs_ipv6

SCOPES = """
import socket, subprocess
import fastsock
subprocess.run(["ip", "address", "add", "fe80::1/64", "dev", "lo", "nodad"], check=True)
scope = socket.if_nametoindex("lo")
for cls in (socket.socket, fastsock.Socket):
    with cls(socket.AF_INET6) as listener, cls(socket.AF_INET6) as near:
        try:
            listener.bind(("fe80::1", 0))
        except OSError as error:
            print(error.errno)                  # EINVAL: which of the links
        listener.bind(("fe80::1", 0, 0, scope))
        listener.listen()
        port = listener.getsockname()[1]
        near.connect(("fe80::1", port, 0xABCDE, scope))
        far, address = listener.accept()
        with far:
            print(address == near.getsockname(), address[0], address[3] == scope, near.getpeername()[3] == scope)
# A scope within the host is enough for ours; the standard library takes it for none.
with fastsock.Socket(socket.AF_INET6) as listener, fastsock.Socket(socket.AF_INET6) as near:
    listener.bind(("fe80::1%lo", 0))
    listener.listen()
    near.connect(("fe80::1%lo", listener.getsockname()[1]))
    print(near.getpeername()[3] == scope)
"""


@needs_ipv6
def test_scopes_and_flow_labels(isolated, namespace):
    lines = isolated(SCOPES, before=namespace.enter).splitlines()
    assert lines == ["22", "True fe80::1 True True"] * 2 + ["True"]
