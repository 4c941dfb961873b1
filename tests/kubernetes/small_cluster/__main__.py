"""`python -m small_cluster CONFIG`: serves until SIGTERM, then ends what it runs.

What belongs here: putting the parts together. `CONFIG` is a JSON file with `port`, `folder`, `images` (name to `env`
and `folder`), `nodes` (objects) and `tokens` (token to user).
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

from small_cluster.api import Cluster, Handler
from small_cluster.jobs import Jobs
from small_cluster.kubelet import Image, Kubelet
from small_cluster.nodes import Scheduler
from small_cluster.objects import Objects

_TICK = 0.1


def main() -> None:
    """Serve."""
    config = json.loads(Path(sys.argv[1]).read_text())
    objects = Objects()
    for node in config["nodes"]:
        objects.add("Node", node)
    images = {name: Image(image["env"], Path(image["folder"])) for name, image in config["images"].items()}
    jobs, scheduler = Jobs(objects), Scheduler(objects)
    kubelet = Kubelet(objects, images, Path(config["folder"]))
    Handler.cluster = Cluster(objects, jobs, kubelet, config["tokens"])
    server = ThreadingHTTPServer(("127.0.0.1", config["port"]), Handler)
    server.daemon_threads = True
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while not stop.wait(_TICK):
        jobs.look()
        for pod in scheduler.look():
            kubelet.start(pod)
    server.shutdown()  # containers die with this process, by the signal they asked the kernel for


if __name__ == "__main__":
    main()
