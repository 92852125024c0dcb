"""Program that runs a server and ends it when its own input is closed.

Usage: ``python keeper.py COMMAND``, where the command is JSON: ``argv``, ``log`` (file for its
output), ``signal`` that ends it, ``user`` to run as (or null), ``folder`` to remove at the end.

Prints the process id. Whoever started the keeper holds the other end of its input; that end is
closed however its holder ends, so no server is left behind, not even after a kill.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading


def main() -> int:
    order = json.loads(sys.argv[1])
    user = {"user": order["user"], "group": order["user"]} if order["user"] else {}
    with open(order["log"], "ab") as log:
        server = subprocess.Popen(
            order["argv"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **user
        )

    def wait_for_the_end() -> None:
        sys.stdin.read()
        server.send_signal(signal.Signals[order["signal"]])
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    sys.stdout.write(f"{server.pid}\n")
    sys.stdout.flush()
    status = server.wait()
    if order["folder"]:
        shutil.rmtree(order["folder"], ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
