"""Run the app with uvicorn: where it binds, when it needs a key, and what it logs."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import traceback
from collections.abc import Callable
from typing import Any

import uvicorn

from saywhy.records import RequestError
from saywhy.serve.app import make_app
from saywhy.serve.contract import Engine
from saywhy.serve.guard import SHORTEST_KEY, is_key
from saywhy.serve.shapes import Limits

# Seconds for the answers to what was late when the server was stopped.
LAST_WORDS = 5
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def read_key(host: str, variable: str | None) -> str | None:
    """Read the API key from an environment variable.

    Raises RequestError for an empty or short one, and where there is none although others than this machine can ask.
    """
    if variable is None:
        if host in LOOPBACK:
            return None
        raise RequestError(
            f"--host {host} lets other machines ask, so a key is needed: put one into an environment variable and name "
            "it, such as --api-key-env SAYWHY_KEY"
        )
    key = os.environ.get(variable, "")
    if not is_key(key):
        raise RequestError(
            f"the environment variable {variable} (--api-key-env) should hold a key of {SHORTEST_KEY} or more ASCII "
            "characters without spaces, such as `openssl rand -hex 24` prints"
        )
    return key


def bind(host: str, port: int) -> socket.socket:
    """Take an address, port 0 for any that is free, without listening yet.

    Raises RequestError where it is not to be had.
    """
    with contextlib.ExitStack() as closing:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            bound = closing.enter_context(socket.socket(family))
            if os.name == "posix":
                # A port that the last server has just left is free. Elsewhere this would let two have the same.
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(address[:2])
        except OSError as problem:
            raise _not_bound(host, port, problem) from problem
        closing.pop_all()
    return bound


def _not_bound(host: str, port: int, problem: OSError) -> RequestError:
    return RequestError(
        f"{host}:{port} cannot be bound ({problem.strerror or problem}); name another --port or --host"
    )


class Discreet(logging.Formatter):
    """Writes where an error happened and not what it says: that may quote a text."""

    def formatException(self, ei: Any) -> str:
        """Give the places that an exception passed, and its kind."""
        kind, _, places = ei
        return "".join([*traceback.format_tb(places), kind.__name__ if kind else ""])


def write_log() -> None:
    """Write the log to standard error, and there too what ends a thread."""
    handler = logging.StreamHandler()
    handler.setFormatter(Discreet("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("saywhy").setLevel(logging.INFO)

    def ended(given: threading.ExceptHookArgs) -> None:
        name = given.thread.name if given.thread is not None else "a thread"
        places = "".join(traceback.format_tb(given.exc_traceback))
        logging.getLogger("saywhy.serve").error("%s ended: %s\n%s", name, given.exc_type.__name__, places)

    threading.excepthook = ended


def make_server(engine: Engine, key: str | None, limits: Limits, log_texts: bool) -> uvicorn.Server:
    """Make the server of an engine; without a key, and so on this machine, it answers to this machine's names alone."""
    settings = uvicorn.Config(
        make_app(engine, limits, key, log_texts=log_texts),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Forwarded addresses are in no log of ours, so no proxy has to be believed.
        proxy_headers=False,
        ws="none",
        # Behind the last deadline, so that what is late is told so.
        timeout_graceful_shutdown=round(limits.seconds) + LAST_WORDS,
    )
    return uvicorn.Server(settings)


def serve(
    open_engine: Callable[[], Engine],
    host: str,
    port: int,
    key_variable: str | None,
    limits: Limits,
    log_texts: bool,
    say: Callable[[str], None],
) -> None:
    """Check what can be wrong before a model is loaded, load it, say where it is, and serve it until a signal.

    What was taken by then is finished first. Raises RequestError as `read_key` and `bind` do.
    """
    key = read_key(host, key_variable)
    with bind(host, port) as bound:
        engine = open_engine()
        # Not before: a probe that found a port but nobody behind it would wait, where a refusal tells it to try again.
        try:
            bound.listen()
        except OSError as problem:
            engine.close()
            raise _not_bound(host, port, problem) from problem
        name, number = bound.getsockname()[:2]
        shown = f"[{name}]" if ":" in name else name
        say(f"{engine.about.name} is at http://{shown}:{number} in mode {engine.about.recommended}; Ctrl-C stops it")
        write_log()
        try:
            make_server(engine, key, limits, log_texts).run(sockets=[bound])
        except KeyboardInterrupt:
            # uvicorn has stopped in good order, and raises the signal again for whoever did not see it.
            logging.getLogger("saywhy.serve").info("stopped")
