"""Faults at random instants: ci/faults [N] [SEED]. Every row N times, library and command, both hand-overs. After each
run the service ends on SIGTERM with code 0, and no process that descends from it is left."""

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from service import CEILING, Broken, Client, Service, until

N = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else 2
SEED = int(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[2].isdigit() else time.time_ns() % 1_000_000
ONLY = sys.argv[3] if len(sys.argv) > 3 else ""


def reloading(s, chance):
    """Asks for a reload, of good code or of code that is never done, and waits a random part of its life."""
    s.save(chance.choice(["v2", "v2", "hangs", "dawdles"] if s.mode == "library" else ["v2", "v2", "silent"]))
    time.sleep(chance.uniform(0, 0.5))


def stopped(s, chance, number):
    reloading(s, chance)
    s.signal(number)
    s.ends(2 + 2)  # the drain limit and the boot of an image that must still hear of it
    s.leaves_nobody()


def term(s, chance):
    stopped(s, chance, signal.SIGTERM)


def interrupt(s, chance):
    stopped(s, chance, signal.SIGINT)


def save_after_save(s, chance):
    client = Client(s.addr)
    s.save("v2")
    time.sleep(chance.uniform(0, 1.5))
    s.save("v3")
    s.serves("v3")
    client.stop()
    s.settled()


def worker_killed(s, chance):
    client = Client(s.addr)
    reloads = s.run % 2 == 1
    if reloads:
        s.signal(signal.SIGHUP)
    time.sleep(chance.uniform(0, 0.3))
    victim = chance.choice(until("somebody to kill", s.family))
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has just drained
    if reloads:
        # The victim may have been the trial of the new image.
        s.line("reload #1: done", "reload #1: dropped: ")
    else:
        s.line(f"(pid {victim}) died: signal 9")
    s.settled()
    client.stop(allowed=1)  # what the victim itself was answering is lost with it
    s.serves("v1")


def master_killed(s, chance):
    reloading(s, chance)
    s.signal(signal.SIGKILL)
    s.ends(code=-signal.SIGKILL)
    s.leaves_nobody()

    def binds():
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(s.addr)
                listener.listen()
                return True
            except OSError:
                return False
    until("the port is free", binds, 8)


def wedged(s, chance):
    with socket.create_connection(s.addr) as connection:
        connection.sendall(b"GET /hang HTTP/1.0\r\n\r\n")
        connection.recv(1024)
        client = Client(s.addr)
        time.sleep(chance.uniform(0, 0.1))
        s.save("v2")
        s.line("did not drain in 2000 ms: SIGKILL")
        s.serves("v2")
        client.stop()
    s.settled()


def wrapped(s, chance):
    """The worker is a shell that dies of SIGTERM; the server that it runs is wedged, or not."""
    client = Client(s.addr)
    with socket.create_connection(s.addr) as connection:
        if s.run % 2 == 1:
            connection.sendall(b"GET /hang HTTP/1.0\r\n\r\n")
            connection.recv(1024)
        time.sleep(chance.uniform(0, 0.1))
        s.save("v2")
        if s.run % 2 == 1:
            s.line("did not end in 2000 ms: SIGKILL")
        s.serves("v2")
    client.stop()
    s.settled()
    if s.run % 4 > 1:
        stopped(s, chance, signal.SIGTERM)


def master_killed_in_a_check(s, chance):
    s.save("stuck")
    s.line("reload #1: checking ")
    time.sleep(chance.uniform(0, 0.1))
    s.signal(signal.SIGKILL)
    s.ends(code=-signal.SIGKILL)
    s.leaves_nobody()


def tried(s, chance, why):
    """Ill code is on trial: good code comes at any instant of that, or, every second time, after the verdict."""
    if s.run % 2 == 1:
        s.refuses(why)
    else:
        time.sleep(chance.uniform(0, 2))


def ill(tag, why):
    """New code that is ill, then code that is good."""
    def row(s, chance):
        client = Client(s.addr)
        s.save(f"{tag}-1")
        tried(s, chance, why)
        s.save("v3")
        s.serves("v3")
        client.stop()
        s.settled()
    return row


def replaced(how, why):
    """Something else in the place of the executable or of COMMAND, then the good one again."""
    def row(s, chance):
        client = Client(s.addr)
        whole = open(s.file, "rb").read()
        if how == "missing":
            os.unlink(s.file)
        elif how == "not executable":
            s.place(s.file, whole, 0o644)
        elif how == "empty":
            s.place(s.file, b"", 0o755)
        elif how == "text":
            s.place(s.file, b"echo a shell ran this >&2\n", 0o755)
        elif how == "truncated":
            s.place(s.file, whole[: int(len(whole) * chance.uniform(0.1, 0.9))], 0o755)
        elif how == "silent":
            s.place(s.file, b"#!/bin/sh\nexec sleep 1000\n", 0o755)
        elif how == "gone at once":
            s.place(s.file, b"#!/bin/sh\nexit 3\n", 0o755)
        if chance.random() < 0.5:
            s.signal(signal.SIGHUP)
        tried(s, chance, why)
        if s.mode == "command":
            s.script()
        s.save("v3")
        s.serves("v3")
        client.stop()
        s.settled()
        if "a shell ran this" in s.said():
            raise Broken("a text file was given to a shell")
    return row


def two_hups(s, chance):
    client = Client(s.addr)
    s.signal(signal.SIGHUP)
    time.sleep(chance.uniform(0, 0.02))
    s.signal(signal.SIGHUP)
    s.line("reload #1: ready")
    s.serves("v1")
    client.stop()
    s.settled()
    if "reload #3" in s.said():
        raise Broken("two signals were three reloads")


def many_hups(s, chance):
    client = Client(s.addr)
    for _ in range(1000):
        s.signal(signal.SIGHUP)
        time.sleep(0.001)
    s.line("ready: generation")
    s.save("v2")
    s.serves("v2")
    client.stop()
    s.settled()
    if (reloads := s.said().count(": asked for ")) > 100:
        raise Broken(f"a thousand signals were {reloads} reloads")


def answered(connection):
    connection.settimeout(CEILING)
    answer = b""
    while chunk := connection.recv(4096):
        answer += chunk
    if not answer.endswith(b"end\n"):
        raise Broken(f"a connection got {answer!r}")


def keep_alive(s, chance):
    # Two workers read from a client each. One is asked while it drains, and answers; the other never, and the master's
    # deadline ends it.
    with socket.create_connection(s.addr), socket.create_connection(s.addr) as active:
        client = Client(s.addr)
        s.save("v2")
        time.sleep(chance.uniform(0, 0.5))
        active.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answered(active)
        s.serves("v2")
        client.stop()
    s.settled()


def thousand_queued(s, chance):
    for pid in s.family():
        os.kill(pid, signal.SIGSTOP)
    queued = []
    for _ in range(1000):
        connection = socket.create_connection(s.addr)
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        queued.append(connection)
    # Woken up by the drain (SIGCONT), they answer what waits; the new generation the rest.
    s.signal(signal.SIGHUP)
    for connection in queued:
        with connection:
            answered(connection)
    s.line("ready: generation 2")
    s.settled()


def anything(s, chance):
    """Signals, saves and deaths in any order; then the last version serves, and a stop in the next reload ends it."""
    signals = [signal.SIGHUP] * 3 + [signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTTOU, signal.SIGCHLD]
    ill = ["exits-3", "crashes", "silent", "sick", "stuck"]
    if s.mode == "library":
        ill = ["crashes", "exits", "hangs", "unwell", "aborts", "dawdles"]
    end = time.monotonic() + chance.uniform(1, 4)
    while time.monotonic() < end:
        kind = chance.random()
        if kind < 0.5:
            number = chance.choice(signals)
            for _ in range(chance.choice([1, 1, 1, 2, 5])):
                s.signal(number)
        elif kind < 0.8:
            s.save(chance.choice(["v2", "v3", "v4", *ill]))
        elif family := s.family():
            try:
                os.kill(chance.choice(family), chance.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM]))
            except ProcessLookupError:
                pass
        time.sleep(chance.choice([0, 0, 0.01, 0.05, 0.2, 0.4]))
    s.save("last")
    s.serves("last")
    stopped(s, chance, chance.choice([signal.SIGTERM, signal.SIGINT]))


COMBINATIONS = [(mode, handover) for mode in ("library", "command") for handover in ("drain-first", "overlap")]
ROWS = [("SIGTERM during a reload", term, {}), ("SIGINT during a reload", interrupt, {}),
        ("a save 0-1.5 s after a save", save_after_save, {}), ("a worker is killed", worker_killed, {}),
        ("the master is killed", master_killed, {}), ("a wedged worker", wedged, {}),
        ("two HUPs at once", two_hups, {}), ("1,000 HUPs in a second", many_hups, {}),
        ("keep-alive clients", keep_alive, {"timeout": 1.0}),
        ("1,000 queued connections", thousand_queued, {"timeout": 10.0}),
        ("anything in any order", anything, {"checked": True})]
# What is not about a limit has time: a busy machine must not change the verdict.
TIME = {"check": 10.0, "boot": 10.0}
NOT_READY = "not all workers are ready after 2000 ms"
ROWS += [("new code is missing", replaced("missing", "such file"), TIME),
         ("new code is not executable", replaced("not executable", "no x-bit"), TIME),
         ("new code is empty", replaced("empty", "is empty"), TIME),
         ("new code is text", replaced("text", "neither an executable image nor a script"), TIME)]
LIBRARY = [("new image is truncated", replaced("truncated", "is truncated"), TIME),
           ("new image crashes in main", ill("crashes", "before Master::run (signal 6 (SIGABRT))"), TIME),
           ("new image exits 0 in main", ill("exits", "before Master::run (exit code 0)"), TIME),
           ("new image hangs in main", ill("hangs", "gave no answer in 2000 ms"), {}),
           ("new image crashes in the worker", ill("aborts", "before they are ready: signal 6 (SIGABRT)"), TIME),
           ("new image fails in the worker", ill("unwell", "before they are ready: exit code 1"), TIME),
           ("new image is never ready", ill("dawdles", NOT_READY), {})]
CHECKED = {**TIME, "checked": True}
COMMAND = [("--check fails", ill("sick", " failed (exit code 7)"), CHECKED),
           ("--check hangs", ill("stuck", "gave no answer in 5000 ms"), CHECKED),
           ("the master is killed during --check", master_killed_in_a_check, CHECKED),
           ("COMMAND is a shell without exec", wrapped, {**TIME, "wrapped": True}),
           ("new code exits 1", ill("exits", "before they are ready: exit code 1"), TIME),
           ("new code crashes", ill("crashes", "before they are ready: signal 6 (SIGABRT)"), TIME),
           ("new code is never ready", ill("silent", NOT_READY), {}),
           ("COMMAND ends at once", replaced("gone at once", "before they are ready: exit code 3"), TIME),
           ("COMMAND is never ready", replaced("silent", NOT_READY), {})]


def full_disk():
    """Not in the table: it needs a file system of its own. How many were tried, how many failed."""
    script = 'mount -t tmpfs -o size=16k none "$0" && exec "$@"'
    if subprocess.run(["unshare", "-m", "true"], stderr=subprocess.DEVNULL).returncode:
        print("skipped: no mount namespace for a full disk")
        return 0, 0
    failed = 0
    for mode, handover in COMBINATIONS:
        with tempfile.TemporaryDirectory(prefix="refork-trouble-full-") as where:
            inner = [sys.executable, os.path.abspath(__file__), "full-disk", where, mode, handover]
            good = subprocess.run(["unshare", "-m", "sh", "-ec", script, where, *inner]).returncode == 0
        failed += not good
        print(f"the status file on a full disk, {mode}, {handover}: {int(good)} of 1", flush=True)
    return len(COMBINATIONS), failed


def on_full_disk(where, mode, handover):
    status, fill = os.path.join(where, "status"), os.path.join(where, "fill")
    s = Service(mode, handover, status=status)
    try:
        with open(fill, "wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        s.signal(signal.SIGHUP)
        s.line("cannot write the status file")
        s.line("ready: generation 2")
        s.serves("v1")
        os.unlink(fill)
        s.signal(signal.SIGHUP)
        s.line("reload #2: ready")
        until("the status file is written again", lambda: "reload='2'" in open(status).read())
        # Once by each of the images that found it full.
        if s.said().count("cannot write the status file") > 2:
            raise Broken("the full disk was said again and again")
        s.stops()
        return 0
    except Broken as error:
        print(f"  {error!r}\n    " + s.said().replace("\n", "\n    "))
        return 1
    finally:
        s.close()


def runs(job):
    """What was broken in N runs of a row."""
    name, row, options, mode, handover = job
    bad = []
    for i in range(N):
        chance = random.Random(f"{SEED} {name} {mode} {handover} {i}")
        s = None
        try:
            s = Service(mode, handover, **options)
            s.run = i
            row(s, chance)
            if s.process.returncode is None:
                s.stops()
            if "panicked" in s.said():
                raise Broken("a panic")
        except Exception as error:  # a fault of this script is a failure, too
            log = s.said() if s else ""
            bad.append(f"  run {i}: {error!r}\n    " + log.replace("\n", "\n    "))
        finally:
            if s:
                s.close()
    return bad


def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    print(f"faults: {N} times, seed {SEED}", flush=True)
    begun, jobs = time.monotonic(), []
    for name, row, options in ROWS + LIBRARY + COMMAND:
        for mode, handover in COMBINATIONS:
            others = COMMAND if mode == "library" else LIBRARY
            if (name, row, options) not in others and ONLY in f"{name}, {mode}, {handover}":
                jobs.append((name, row, options, mode, handover))
    failed = 0
    # Mostly they wait.
    with ThreadPoolExecutor(4) as pool:
        for job, bad in zip(jobs, pool.map(runs, jobs)):
            name, _, _, mode, handover = job
            failed += len(bad)
            print(f"{name}, {mode}, {handover}: {N - len(bad)} of {N}", *bad, sep="\n", flush=True)
    done = N * len(jobs)
    if not ONLY:
        more, bad = full_disk()
        done, failed = done + more, failed + bad
    print(f"faults: {done} runs, {failed} failed, seed {SEED}, {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "full-disk":
        sys.exit(on_full_disk(*sys.argv[2:]))
    else:
        sys.exit(main())
