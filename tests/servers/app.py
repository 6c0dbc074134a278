"""A small HTTP server that does not know refork: it takes the listening socket at fd 3 (systemd's convention) and drains
on SIGTERM. Run it under refork with

    refork run -b 127.0.0.1:8000 -w 2 -r -- python3 tests/servers/app.py

change TEXT, save, and ask again.
"""

import os
import select
import signal
import socket

TEXT = "hello"

listener = socket.socket(fileno=3)
listener.setblocking(False)
draining, wake = socket.socketpair()
signal.signal(signal.SIGTERM, lambda *_: wake.close())


def answer(connection):
    with connection:
        connection.settimeout(10)
        try:
            connection.recv(4096)
            body = f"{TEXT} from worker {os.getpid()}, master {os.getppid()}\n".encode()
            head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            connection.sendall(head + body)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # one client's trouble is not the worker's


while True:
    ready, _, _ = select.select([listener, draining], [], [])
    try:
        answer(listener.accept()[0])  # another worker may have been faster
    except BlockingIOError:
        if draining in ready:
            break
