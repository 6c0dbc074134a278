"""A service under test, library or command, and clients that accept nothing but complete answers."""

import os
import queue
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
BUILD = os.environ.get("BUILD", os.path.join(TOP, "target/debug"))
REFORK, PROBE = os.path.join(BUILD, "refork"), os.path.join(BUILD, "examples/probe")
CEILING = 30  # against hangs only


class Broken(Exception):
    """What refork was seen to do wrong."""


def stat(pid):
    """Parent, state and start of a process."""
    try:
        fields = open(f"/proc/{pid}/stat").read().rsplit(") ", 1)[1].split()
        return int(fields[1]), fields[0], fields[19]
    except (OSError, IndexError):
        return None


def children(pid):
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            seen = stat(int(name))
            if seen and seen[0] == pid:
                found[int(name)] = seen[1]
    return found


def until(what, condition, limit=CEILING):
    """Facts that no line tells."""
    end = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Broken(f"{what}: not within {limit} s")
        time.sleep(0.01)


def get(addr, path="/", timeout=CEILING):
    with socket.create_connection(addr, timeout) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
    if not answer.endswith(b"end\n"):
        raise OSError(f"incomplete answer {answer!r}")
    return dict(word.split("=", 1) for word in answer.decode().split() if "=" in word)


class Service:
    def __init__(self, mode, handover, *, workers=2, timeout=2.0, watch=True, boot=2.0, check=2.0, status=None,
                 checked=False, wrapped=False):
        self.wrapped = wrapped
        self.mode, self.handover, self.dir = mode, handover, tempfile.mkdtemp(prefix="refork-trouble-")
        self.last = "v1"
        if mode == "library":
            self.file = os.path.join(self.dir, "probe")
            self.save("v1")
            args = [self.file, "bind=127.0.0.1:0", f"workers={workers}", f"timeout={int(timeout * 1000)}",
                    f"boot={int(boot * 1000)}", f"check={int(check * 1000)}", f"handover={handover}"]
            args += ["watch=executable"] * watch + ([f"status={status}"] if status else [])
        else:
            shutil.copy(os.path.join(HERE, "server.py"), self.dir)
            self.file = os.path.join(self.dir, "server")
            self.script()
            self.save("v1")
            args = [REFORK, "run", "-b", "127.0.0.1:0", "-w", str(workers), "--shutdown-timeout", str(timeout),
                    "--boot-timeout", str(boot), "--handover", handover, "--ready", "notify"]
            args += ["--reload-path", self.dir, "--reload-include", "text", "--reload-include", "server"] * watch
            args += ["--status-file", status] if status else []
            sick = f"grep -q ^sick {self.dir}/text && exit 7; grep -q ^stuck {self.dir}/text && exec sleep 1000; :"
            args += ["--check", sick] * checked
            args += ["--", self.file]
        # Inherited by all of its family, whoever is their parent later.
        self.mark = f"REFORK_TROUBLE={self.dir}".encode()
        env = {**os.environ, "REFORK_TROUBLE": self.dir}
        self.process = subprocess.Popen(args, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                        stdin=subprocess.DEVNULL)
        self.pid, self.log, self.lines = self.process.pid, [], queue.Queue()
        threading.Thread(target=self.hear, daemon=True).start()
        host, port = self.line("listening on ").rsplit(" ", 1)[1].rsplit(":", 1)
        self.addr = (host, int(port))
        self.line("ready: generation 1")

    def hear(self):
        for line in self.process.stderr:
            self.lines.put(line.decode(errors="replace").rstrip())
        self.lines.put(None)

    def line(self, *needles, limit=CEILING):
        """The next line with one of them."""
        end = time.monotonic() + limit
        while True:
            try:
                line = self.lines.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                raise Broken(f"no line with {needles} within {limit} s") from None
            if line is None:
                raise Broken(f"ended without a line with {needles}")
            self.log.append(line)
            if any(needle in line for needle in needles):
                return line

    def said(self):
        while not self.lines.empty():
            line = self.lines.get()
            self.log += [line] if line is not None else []
        return "\n".join(self.log)

    def script(self, text=None, mode=0o755):
        """COMMAND's own file, replaced by a rename."""
        does = "" if self.wrapped else "exec "
        self.place(self.file, (text or f"#!/bin/sh\n{does}python3 -S {self.dir}/server.py\n:\n").encode(), mode)

    def place(self, path, content, mode):
        # Written by another process: a descriptor open for writing that a fork of ours inherits would make it busy.
        script = 'cat > "$0.new" && chmod "$1" "$0.new" && mv "$0.new" "$0"'
        subprocess.run(["sh", "-ec", script, path, oct(mode)[2:]], input=content, check=True)

    def save(self, tag):
        """New code whose answers carry this tag."""
        self.last = tag
        if self.mode == "library":
            script = 'cp "$0" "$1.new" && printf TAG:%s "$2" >> "$1.new" && mv "$1.new" "$1"'
            subprocess.run(["sh", "-ec", script, PROBE, self.file, tag], check=True)
        else:
            self.place(os.path.join(self.dir, "text"), tag.encode(), 0o644)

    def signal(self, number):
        os.kill(self.pid, number)

    def refuses(self, why):
        """Waits for the verdict on ill code, which names the reason. If what ran before serves on, that answers."""
        said = self.line(": dropped: ", ": rolled back: ", ": abandoned: ")
        if why not in said:
            raise Broken(f"not because of {why!r}: {said!r}")
        if ": abandoned: " not in said or self.handover == "overlap":
            # Those that are given up accept until they have heard of it.
            self.settled()
            if (tag := get(self.addr)["tag"]) != "v1":
                raise Broken(f"{tag} answers after {said!r}")

    def serves(self, tag, limit=CEILING):
        until(f"{tag} serves", lambda: get(self.addr).get("tag") == tag, limit)
        if not self.wrapped and int(get(self.addr)["ppid"]) != self.pid:
            raise Broken("the pid has changed")

    def ends(self, limit=CEILING, code=0):
        try:
            ended = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise Broken(f"does not end within {limit} s") from None
        if ended != code:
            raise Broken(f"ended with {ended}, not {code}")

    def family(self):
        """The master's children."""
        return sorted(children(self.pid))

    def left(self):
        """Whoever descends from the master, orphans included."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/environ", "rb") as environ:
                    found += [int(name)] * (self.mark in environ.read().split(b"\0"))
            except OSError:
                pass
        return found

    def stops(self, limit=CEILING):
        """As a service manager ends it: code 0, and nobody is left."""
        self.signal(signal.SIGTERM)
        self.ends(limit)
        self.leaves_nobody()

    def leaves_nobody(self, limit=10):
        try:
            until("nobody is left", lambda: not self.left(), limit)
        except Broken as error:
            who = {pid: (stat(pid) or "gone") for pid in self.left()}
            raise Broken(f"{error}; parent, state and start: {who}") from None

    def settled(self, workers=2):
        def quiet():
            states = list(children(self.pid).values())
            return len(states) == workers and "Z" not in states
        until(f"{workers} workers and no zombie", quiet, 10)

    def close(self):
        """Whatever has happened: nothing stays."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in self.left():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(self.dir, ignore_errors=True)


class Client(threading.Thread):
    """Connects every 5 ms; whatever is not a complete answer is kept."""

    def __init__(self, addr, every=0.005):
        super().__init__(daemon=True)
        self.addr, self.every, self.errors, self.answers, self.stopped = addr, every, [], 0, threading.Event()
        self.start()

    def run(self):
        while not self.stopped.wait(self.every):
            try:
                get(self.addr)
                self.answers += 1
            except (OSError, socket.timeout) as error:
                self.errors.append(repr(error))

    def stop(self, allowed=0):
        self.stopped.set()
        self.join(2 * CEILING)
        if len(self.errors) > allowed:
            raise Broken(f"{len(self.errors)} clients were not answered, {self.answers} were: {self.errors[:3]}")
        if self.answers == 0:
            raise Broken("no client was answered")
        return self.answers
