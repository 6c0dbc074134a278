"""Faults at random instants: ci/faults [N] [SEED]. Every row N times, library and command, both hand-overs."""

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from service import Broken, Client, Service, gone, until

N = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else 2
SEED = int(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[2].isdigit() else time.time_ns() % 1_000_000
ONLY = sys.argv[3] if len(sys.argv) > 3 else ""
skipped = 0


def reloading(s, chance):
    """Asks for a reload and waits a random part of its life."""
    s.save("v2")
    time.sleep(chance.uniform(0, 0.5))


def stopped(s, chance, number):
    reloading(s, chance)
    family = s.family()
    s.signal(number)
    s.ends(2 + 2)  # the drain limit and the boot of an image that must still hear of it
    until("all workers are gone", lambda: gone(family), 5)


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
    time.sleep(chance.uniform(0, 0.3))
    victim = chance.choice(list(s.family()))
    os.kill(victim, signal.SIGKILL)
    s.line(f"(pid {victim}) died: signal 9")
    s.settled()
    client.stop(allowed=1)  # what the victim itself was answering is lost with it
    s.serves("v1")


def master_killed(s, chance):
    reloading(s, chance)
    family = s.family()
    s.signal(signal.SIGKILL)
    s.ends(code=-signal.SIGKILL)
    family.update({p: t for p, t in s.family().items()})
    until("no orphan stays", lambda: gone(family), 8)

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


def ill(tag):
    """New code that is ill, then code that is good."""
    def row(s, chance):
        client = Client(s.addr)
        s.save(f"{tag}-1")
        time.sleep(chance.uniform(0, 2))
        s.save("v3")
        s.serves("v3")
        client.stop()
        s.settled()
    return row


def replaced(how):
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
        time.sleep(chance.uniform(0, 2))
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


def keep_alive(s, chance):
    # Idle connections hold a worker that reads without a limit; the master's deadline ends it.
    idle = [socket.create_connection(s.addr)]
    client = Client(s.addr)
    s.save("v2")
    s.serves("v2")
    client.stop()
    idle[0].close()
    s.settled()


def thousand_queued(s, chance):
    workers = list(s.family())
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    queued = []
    for _ in range(1000):
        connection = socket.create_connection(s.addr)
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        queued.append(connection)
    # Woken up by the drain (SIGCONT), they answer what waits; the new generation the rest.
    s.signal(signal.SIGHUP)
    for connection in queued:
        connection.settimeout(30)
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
        connection.close()
        if not answer.endswith(b"end\n"):
            raise Broken(f"a queued connection got {answer!r}")
    s.line("ready: generation 2")
    s.settled()


ROWS = [("SIGTERM during a reload", term, {}), ("SIGINT during a reload", interrupt, {}),
        ("a save 0-1.5 s after a save", save_after_save, {}), ("a worker is killed", worker_killed, {}),
        ("the master is killed", master_killed, {}), ("a wedged worker", wedged, {}),
        ("two HUPs at once", two_hups, {}), ("1,000 HUPs in a second", many_hups, {}),
        ("idle keep-alive clients", keep_alive, {"timeout": 0.5}), ("1,000 queued connections", thousand_queued, {"timeout": 10.0})]
ROWS += [(f"new code is {how}", replaced(how), {}) for how in ("missing", "not executable", "empty", "text")]
LIBRARY = [("new image is truncated", replaced("truncated"), {}), ("new image crashes in main", ill("crashes"), {}),
           ("new image exits 0 in main", ill("exits"), {}), ("new image hangs in main", ill("hangs"), {}),
           ("new image crashes in the worker", ill("aborts"), {}), ("new image fails in the worker", ill("unwell"), {}),
           ("new image is never ready", ill("dawdles"), {})]
COMMAND = [("new code exits 1", ill("exits"), {}), ("new code crashes", ill("crashes"), {}),
           ("new code is never ready", ill("silent"), {}), ("COMMAND ends at once", replaced("gone at once"), {}),
           ("COMMAND is never ready", replaced("silent"), {})]


def full_disk():
    """Not in the table: it needs a file system of its own."""
    import service
    script = 'mount -t tmpfs -o size=16k none "$0" && exec "$@"'
    where = os.path.join(service.HERE, "target", "full")
    os.makedirs(where, exist_ok=True)
    if subprocess.run(["unshare", "-m", "true"], stderr=subprocess.DEVNULL).returncode:
        print("skipped: no mount namespace for a full disk")
        return 0
    inner = [sys.executable, os.path.abspath(__file__), "full-disk", where]
    return int(subprocess.run(["unshare", "-m", "sh", "-ec", script, where, *inner]).returncode != 0)


def on_full_disk(where):
    s = Service("library", "overlap", status=os.path.join(where, "status"))
    try:
        with open(os.path.join(where, "fill"), "wb") as fill:
            try:
                fill.write(b"x" * 65536)
                fill.flush()
            except OSError:
                pass
        s.signal(signal.SIGHUP)
        s.line("cannot write the status file")
        s.line("ready: generation 2")
        s.serves("v1")
        os.unlink(os.path.join(where, "fill"))
        s.signal(signal.SIGHUP)
        s.line("reload #2: ready")
        until("the status file is written again", lambda: "reload='2'" in open(os.path.join(where, "status")).read())
        # Once by each of the images that found it full.
        if s.said().count("cannot write the status file") > 2:
            raise Broken("the full disk was said again and again")
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
            row(s, chance)
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
        for mode, others in (("library", COMMAND), ("command", LIBRARY)):
            for handover in ("drain-first", "overlap"):
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
        bad = full_disk()
        done, failed = done + 1, failed + bad
        print(f"the status file on a full disk: {1 - bad} of 1")
    print(f"faults: {done} runs, {failed} failed, seed {SEED}, {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "full-disk":
        on_full_disk(sys.argv[2])
    else:
        sys.exit(main())
