"""watchfiles as `refork watch --json` would print it: ready once its watcher exists, then one line a batch."""
import json, sys, time
from watchfiles._rust_notify import RustNotify

def say(**line):
    print(json.dumps(line), flush=True)

with RustNotify([sys.argv[1]], False, False, 0, True, False) as watcher:
    say(ready=True, t_ns=time.monotonic_ns())
    while True:
        changes = watcher.watch(1600, 50, 5000, None)  # debounce and step: the defaults of watchfiles.watch()
        if changes == "signal":
            break
        if changes != "timeout":
            say(t_ns=time.monotonic_ns(), paths=sorted({path for _, path in changes}))
