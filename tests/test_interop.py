"""What takes a socket in the standard library, with ours: ssl, select, socketserver, http, multiprocessing, pickle."""

import contextlib
import copy
import http.client
import http.server
import multiprocessing
import multiprocessing.resource_sharer
import multiprocessing.resource_tracker
import os
import pickle
import select
import selectors
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import fastsock
from fastsock import socket as ours

CERTIFICATE = Path(__file__).parent / "data" / "localhost.pem"
"""Self-signed, for localhost and 127.0.0.1, with its key, which is therefore no secret."""


@pytest.fixture
def listener(closing):
    made = closing(ours.create_server(("127.0.0.1", 0)))
    made.settimeout(10)
    return made


@pytest.fixture
def pair(listener, closing):
    near = closing(ours.create_connection(listener.getsockname(), 10))
    far = closing(listener.accept()[0])
    far.settimeout(10)
    return near, far


@contextlib.contextmanager
def in_thread(target, *arguments):
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(20)
        assert not thread.is_alive()


# --- ssl ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


@pytest.fixture(scope="module")
def client_context():
    return ssl.create_default_context(cafile=CERTIFICATE)


def echo_tls(sock, context):
    with context.wrap_socket(sock, server_side=True) as secured:
        while payload := secured.recv(100_000):
            secured.sendall(payload.upper())


@pytest.mark.parametrize("timeout", [None, 10])
def test_tls_both_ways(pair, server_context, client_context, timeout):
    near, far = pair
    near.settimeout(timeout)
    fd = near.fileno()
    with (
        in_thread(echo_tls, far, server_context),
        client_context.wrap_socket(near, server_hostname="localhost") as secured,
    ):
        assert (near.fileno(), secured.fileno(), secured.gettimeout()) == (-1, fd, timeout)
        near.close()
        secured.sendall(b"x" * 300_000)
        received = b""
        while len(received) < 300_000:
            received += secured.recv(1 << 16)
        assert received == b"X" * 300_000
        assert secured.getpeercert()["subject"] == ((("commonName", "localhost"),),)
    assert far.fileno() == -1


def test_tls_on_a_listening_socket(listener, server_context, client_context):
    def serve(server):
        with server.accept()[0] as secured:
            secured.sendall(secured.recv(10))

    with (
        server_context.wrap_socket(listener, server_side=True) as server,
        in_thread(serve, server),
        ours.create_connection(server.getsockname(), 10) as near,
        client_context.wrap_socket(near, server_hostname="127.0.0.1") as secured,
    ):
        secured.sendall(b"hello")
        assert secured.recv(10) == b"hello"


def test_handshake_times_out(pair, client_context):
    near, _ = pair
    near.settimeout(0.05)
    with client_context.wrap_socket(near, server_hostname="localhost", do_handshake_on_connect=False) as secured:
        with pytest.raises(TimeoutError, match="handshake operation timed out"):
            secured.do_handshake()
        secured.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            secured.do_handshake()


def test_tls_needs_a_stream(client_context):
    with fastsock.Socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(NotImplementedError, match="stream"):
            client_context.wrap_socket(sock)
        assert sock.fileno() >= 0


def test_memory_bio_over_a_socket(pair, server_context, client_context):
    # What libraries do that keep the socket to themselves.
    near, far = pair
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    engine = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")

    def step(call, *arguments):
        while True:
            try:
                result = call(*arguments)
            except ssl.SSLWantReadError:
                near.sendall(outgoing.read())
                incoming.write(near.recv(1 << 16))
                continue
            near.sendall(outgoing.read())
            return result

    with in_thread(echo_tls, far, server_context):
        step(engine.do_handshake)
        step(engine.write, b"quiet")
        assert step(engine.read, 10) == b"QUIET"
        near.close()


# --- readiness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SelectSelector", "PollSelector", "EpollSelector"])
def test_selectors(pair, name):
    near, far = pair
    with getattr(selectors, name)() as selector:
        key = selector.register(near, selectors.EVENT_READ, "data")
        assert selector.get_key(near) is key
        assert key.fileobj is near
        assert selector.select(0) == []
        far.sendall(b"x")
        assert selector.select(10) == [(key, selectors.EVENT_READ)]
        selector.modify(near, selectors.EVENT_WRITE)
        assert selector.select(10)[0][1] == selectors.EVENT_WRITE
        selector.unregister(near)
        selector.register(near, selectors.EVENT_READ)
        near.close()
        with pytest.raises(ValueError, match="Invalid file descriptor"):
            selectors.SelectSelector().register(near, selectors.EVENT_READ)
        selector.unregister(near)  # finds it by identity


def test_select_poll_epoll(pair):
    near, far = pair
    assert select.select([near, far], [near], [], 0) == ([], [near], [])
    far.sendall(b"x")
    assert select.select([near, far], [], [], 10)[0] == [near]
    poll = select.poll()
    poll.register(near, select.POLLIN)
    assert poll.poll(10_000) == [(near.fileno(), select.POLLIN)]
    with select.epoll() as epoll:
        epoll.register(near, select.EPOLLIN)
        assert epoll.poll(10) == [(near.fileno(), select.EPOLLIN)]
        epoll.unregister(near)
    fd = near.fileno()
    near.close()
    assert fd != near.fileno()
    with pytest.raises(ValueError, match="negative"):
        select.select([near], [], [], 0)


# --- servers -----------------------------------------------------------------------------------


class EchoStream(socketserver.StreamRequestHandler):
    timeout = 10
    kinds: tuple[type, ...] = ()

    def handle(self):
        type(self).kinds += (type(self.request),)
        for line in self.rfile:
            self.wfile.write(line.upper())


class EchoDatagram(socketserver.DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read().upper())


def serving(server, sock):
    """The server with our socket in the place of its own, running."""
    server.socket.close()
    server.socket = sock
    server.server_address = sock.getsockname()

    @contextlib.contextmanager
    def run():
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join(20)

    return run()


@pytest.mark.parametrize("base", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
def test_tcp_server(base, listener):
    server = base(("127.0.0.1", 0), EchoStream, bind_and_activate=False)
    with serving(server, listener), ours.create_connection(listener.getsockname(), 10) as near:
        near.sendall(b"one\ntwo\n")
        near.shutdown(socket.SHUT_WR)
        with near.makefile("rb") as answers:
            assert list(answers) == [b"ONE\n", b"TWO\n"]
        assert fastsock.Socket in EchoStream.kinds


@pytest.mark.parametrize("base", [socketserver.UnixStreamServer, socketserver.ThreadingUnixStreamServer])
def test_unix_server(base, tmp_path, closing):
    sock = closing(fastsock.Socket(socket.AF_UNIX))
    sock.bind(str(tmp_path / "server"))
    sock.listen()
    server = base(sock.getsockname(), EchoStream, bind_and_activate=False)
    with serving(server, sock), fastsock.Socket(socket.AF_UNIX) as near:
        near.settimeout(10)
        near.connect(server.server_address)
        near.sendall(b"one\n")
        assert near.recv(10) == b"ONE\n"
        near.shutdown(socket.SHUT_WR)
        assert near.recv(10) == b""


@pytest.mark.parametrize("base", [socketserver.UDPServer, socketserver.ThreadingUDPServer])
def test_udp_server(base, closing):
    sock = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    server = base(("127.0.0.1", 0), EchoDatagram, bind_and_activate=False)
    with serving(server, sock), fastsock.connect_udp(sock.getsockname()) as near:
        near.settimeout(10)
        near.send(b"datagram")
        assert near.recv(100) == b"DATAGRAM"


class Pages(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        payload = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload[::-1])

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize("base", [http.server.HTTPServer, http.server.ThreadingHTTPServer])
def test_http(base, listener):
    server = base(("127.0.0.1", 0), Pages, bind_and_activate=False)
    server.server_name, server.server_port = "localhost", listener.getsockname()[1]
    with serving(server, listener):
        connection = http.client.HTTPConnection(*listener.getsockname(), timeout=10)
        connection._create_connection = ours.create_connection
        payload = os.urandom(300_000)
        with contextlib.closing(connection):
            for _ in range(3):
                connection.request("POST", "/", payload)
                with connection.getresponse() as response:
                    assert response.read() == payload[::-1]
                assert type(connection.sock) is fastsock.Socket


# --- other processes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resource_tracker():
    """Spawning starts a process that stays to the end, with a pipe to it."""
    multiprocessing.resource_tracker.ensure_running()


def answer(sock):
    with sock:
        sock.sendall(repr((type(sock).__name__, sock.family, sock.gettimeout())).encode())


def answer_from_pipe(pipe):
    answer(pipe.recv())
    pipe.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.parametrize("way", ["argument", "pipe"])
def test_sockets_go_to_other_processes(resource_tracker, pair, method, way):
    near, far = pair
    context = multiprocessing.get_context(method)
    if way == "argument":
        process = context.Process(target=answer, args=(far,))
        process.start()
    else:
        here, there = context.Pipe()
        process = context.Process(target=answer_from_pipe, args=(there,))
        process.start()
        there.close()
        here.send(far)
        with here:
            assert near.recv(1000, socket.MSG_PEEK)
    far.close()
    received = near.recv(1000)
    process.join(20)
    assert process.exitcode == 0
    process.close()
    expected = 10.0 if (way, method) == ("argument", "fork") else None  # pickled, it starts anew, as theirs does
    assert received == repr(("Socket", socket.AF_INET, expected)).encode()
    if way == "pipe":
        multiprocessing.resource_sharer.stop()


@pytest.mark.parametrize(
    "attempt",
    [
        copy.copy,
        copy.deepcopy,
        *[lambda sock, n=n: pickle.dumps(sock, n) for n in range(pickle.HIGHEST_PROTOCOL + 1)],
        lambda sock: pickle.dumps({"key": [sock]}),
    ],
)
def test_no_copies(pair, attempt):
    with pytest.raises(TypeError, match="cannot pickle"):
        attempt(pair[0])


def test_subprocess_pass_fds(pair):
    near, far = pair
    script = "import sys, fastsock\nwith fastsock.Socket(fileno=int(sys.argv[1])) as sock: sock.sendall(b'child')"
    fd = str(far.fileno())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", script, fd], pass_fds=[far.fileno()], check=True, env=environment)
    assert near.recv(10) == b"child"
    assert not far.get_inheritable()
