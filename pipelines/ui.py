"""The Dagster UI of this checkout: `python -m pipelines.ui [--port 3000]`.

Says its address, starts ``dg dev`` with this folder as Dagster's home, and prints warnings alone.
One folder has one server: two daemons on it would each start what a change makes stale.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from assets.engine.events import ONE_PLANNED_EVENT
from assets.engine.lock import alone, is_taken
from assets.settings import ExperimentError
from pipelines.experiment import ROOT
from pipelines.home import dagster_home

_LOCK = "ui"
_HOST = "127.0.0.1"


def command(port: int) -> list[str]:
    """What serves the UI, to loopback alone."""
    dg = str(Path(sys.executable).parent / "dg")
    return [dg, "dev", "--host", _HOST, "--port", str(port), "--log-level", "warning"]


def check_free(folder: Path, port: int) -> None:
    """Raise if this folder has a server already, or something else has the port.

    Raises:
        ExperimentError: which of the two, and what to do.
    """
    if is_taken(folder, _LOCK):
        owner = (folder / ".locks" / _LOCK).read_text(encoding="utf-8").strip()
        raise ExperimentError(
            f"this folder has a Dagster server already ({owner}): use that one, or stop it. Two "
            "would each start what a change makes stale."
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            raise ExperimentError(
                f"something else listens at port {port}: give another, such as "
                f"make ui PORT={port + 1}."
            ) from None


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((_HOST, port)) == 0


def serve(port: int) -> int:
    """Serve until interrupted; the exit code."""
    folder = ROOT / ".dagster"
    check_free(folder, port)
    address = f"http://{_HOST}:{port}"
    print(f"Dagster UI: {address} (starting; Ctrl-C stops it)", flush=True)
    home = str(dagster_home())
    # The committed .env, which Dagster reads over the environment, makes PWD the home.
    told = {"PWD": home, "DAGSTER_HOME": home, "VIRTUAL_ENV": sys.prefix}
    planned = dict([ONE_PLANNED_EVENT])
    with alone(folder, _LOCK, print):
        server = subprocess.Popen(command(port), cwd=ROOT, env={**planned, **os.environ, **told})
        try:
            while server.poll() is None and not _answers(port):
                time.sleep(0.5)
            if server.poll() is None:
                print(f"Dagster UI: ready at {address}", flush=True)
            return server.wait()
        except KeyboardInterrupt:
            server.send_signal(signal.SIGINT)
            server.wait()
            return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.ui", description=__doc__)
    parser.add_argument("--port", type=int, default=3000)
    try:
        return serve(parser.parse_args(arguments).port)
    except ExperimentError as error:
        print(f"ExperimentError: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
