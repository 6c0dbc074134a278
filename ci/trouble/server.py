"""A server for `refork run`: answers with the text of the file beside it that was there when it started, drains on
SIGTERM. A text may be ill: `exits-CODE`, `crashes`, `silent` (never says READY=1). A request for /hang is never
answered, whatever the server is told; one for /slow is answered after five seconds."""

import os
import select
import signal
import socket
import sys
import time

text = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "text")).read().strip()
word = text.split("-")[0]
if word == "exits":
    sys.exit(int(text.split("-")[1]))
if word == "crashes":
    os.abort()
wake_read, wake = socket.socketpair()
signal.signal(signal.SIGTERM, lambda *_: wake.close())
listener = socket.socket(fileno=3)
listener.setblocking(False)
if os.environ.get("NOTIFY_SOCKET") and word != "silent":
    name = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", "\0" + name[1:] if name[0] == "@" else name)


def answer(connection):
    with connection:
        connection.settimeout(10)
        try:
            path = connection.recv(4096).split(b" ")[1]
            connection.sendall(f"HTTP/1.0 200 OK\r\n\r\ntag={text} pid={os.getpid()} ppid={os.getppid()}\n".encode())
            if path == b"/hang":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                while True:
                    time.sleep(1000)
            if path == b"/slow":
                time.sleep(5)
            connection.sendall(b"end\n")
            connection.shutdown(socket.SHUT_WR)
        except (OSError, IndexError):
            pass


while True:
    ready, _, _ = select.select([listener, wake_read], [], [])
    try:
        answer(listener.accept()[0])
    except BlockingIOError:
        if wake_read in ready:
            break
