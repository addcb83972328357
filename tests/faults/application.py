"""An application that traces at a rate and keeps a journal of it; run as a process of its own.

    python application.py '{"server": KEY, "bootstrap": […], "keys": FILE, "spool": FOLDER,
                            "journal": FILE, "run": 1, "rate": 500, "count": null}'

Each trace goes into the journal once `trace` has returned: `<run> <n> <monotonic time>`. It traces
until `count` is reached, or SIGTERM comes, then stops the client, which has `patience` seconds, and
tells on stdout how it went. SIGUSR1 makes it tell what it has so far.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time

from hyperlog import Client, create_tracer


class Application:
    def __init__(self):
        self.tracer = create_tracer(self)


def memory(field: str) -> int:
    """KiB, of /proc: what getrusage tells includes the process that started this one."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))


def main() -> None:
    options = json.loads(sys.argv[1])
    client = Client()
    client.start(
        options["server"],
        bootstrap=options["bootstrap"],
        keys=options["keys"],
        spool=options["spool"],
    )
    stopping = False

    def stop(*_):
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    journal = os.open(options["journal"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    application = Application()
    run, rate, count = options["run"], options["rate"], options.get("count")
    began_at = time.monotonic()
    print(json.dumps({"event": "started", "idleKiB": memory("VmRSS")}), flush=True)
    n = 0
    told = False
    while not stopping:
        due = int((time.monotonic() - began_at) * rate) + 1
        if count is not None:
            due = min(due, count)
        lines = []
        while n < due:
            application.tracer.trace("tick", {"run": run, "n": n})
            lines.append(f"{run} {n} {time.monotonic():.4f}\n")
            n += 1
        if lines:
            os.write(journal, "".join(lines).encode())
        if n == count and not told:
            told = True
            print(json.dumps({"event": "traced", "n": n}), flush=True)
        time.sleep(0.002)
    stop_at = time.monotonic()
    delivered = client.stop(options.get("patience", 1.0))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "event": "stopped",
                "delivered": delivered,
                "seconds": time.monotonic() - stop_at,
                "traced": n,
                "lost": client.statistics().lost,
                "peakKiB": memory("VmHWM"),
                "cpu": usage.ru_utime + usage.ru_stime,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
