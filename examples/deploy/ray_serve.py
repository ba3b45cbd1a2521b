"""The same server with several replicas, on one machine or many, by Ray Serve (extra `ray`).

    RAY_USAGE_STATS_ENABLED=0 python examples/deploy/ray_serve.py runs/mail --replicas 2
    RAY_USAGE_STATS_ENABLED=0 serve run --app-dir examples/deploy ray_serve:build folder=/models/mail replicas=2

Each replica loads the model and batches what it is sent. With SAYWHY_KEY in the replicas' environment all but the page,
/health and /ready ask for that key. Without it only this machine can be served, and every request has to say localhost.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from typing import Any

import ray
from ray import serve

from saywhy.records import RequestError
from saywhy.serve.run import read_key


def build(told: dict[str, str]) -> serve.Application:
    """Build the application: `folder` is a run or a model folder, `replicas` how many, `cpus` the cores of each."""
    folder = os.path.abspath(told["folder"])  # noqa: PTH100 - Ray sends it on as it is

    def make_app() -> Any:
        from saywhy.predict.engine import open_engine
        from saywhy.serve.app import make_app

        return make_app(open_engine(folder), key=os.environ.get("SAYWHY_KEY"))

    deployment = serve.deployment(
        name="saywhy",
        num_replicas=int(told.get("replicas", "1")),
        ray_actor_options={"num_cpus": float(told.get("cpus", "1"))},
        # More than an engine's two queues hold, so that what waits is batched there, or answered with 429.
        max_ongoing_requests=4096,
        graceful_shutdown_timeout_s=60,
    )
    return deployment(serve.ingress(make_app)()).bind()


def main() -> None:
    """Serve on this machine until a signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--replicas", default="2")
    parser.add_argument("--cpus", default="1")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    try:
        read_key(given.host, "SAYWHY_KEY" if "SAYWHY_KEY" in os.environ else None)
    except RequestError as problem:
        parser.error(str(problem))
    # Texts and answers are small; by default Ray sets a third of the memory aside.
    ray.init(include_dashboard=False, object_store_memory=2**28)
    serve.start(http_options={"host": given.host, "port": given.port})
    stopped = threading.Event()
    # Behind ray.init, whose own handler ends at once; what comes while replicas start is answered when they have.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stopped.set())
    serve.run(build({"folder": given.folder, "replicas": given.replicas, "cpus": given.cpus}))
    print(f"{given.replicas} replicas are at http://{given.host}:{given.port}", flush=True)
    stopped.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
