"""The explorer: `python -m explorer`, then http://127.0.0.1:3001 in a browser."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from assets.settings import ExperimentError
from explorer.app import Explorer

PORT = 3001
DAGSTER = "http://127.0.0.1:3000"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    from pipelines.experiment import read_all, shipped_experiments

    parser = argparse.ArgumentParser(prog="python -m explorer", description=__doc__)
    parser.add_argument("--port", type=int, default=PORT, help=f"{PORT} by default")
    parser.add_argument(
        "--experiments",
        nargs="+",
        type=Path,
        default=shipped_experiments(),
        metavar="FILE",
        help="YAML files; those in experiments/ by default",
    )
    parser.add_argument(
        "--dagster",
        default=DAGSTER,
        metavar="ADDRESS",
        help=f"address of the Dagster UI that circuits link to, {DAGSTER} by default; '' for none",
    )
    chosen = parser.parse_args(arguments)
    experiments, errors = read_all(chosen.experiments)
    problems = [str(error) for error in errors]
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    if not experiments:
        return 1
    return serve(Explorer(experiments, problems, chosen.dagster), chosen.port)


def serve(explorer: Explorer, port: int) -> int:
    """Answer on the loopback address until interrupted."""
    import uvicorn

    sys.stdout.write(f"explorer: http://127.0.0.1:{port} (Ctrl+C ends it)\n")
    sys.stdout.flush()
    threading.Thread(target=_warm, args=(explorer,), daemon=True).start()
    # Only the loopback address: the tables are shown to whoever can ask.
    server = uvicorn.Server(
        uvicorn.Config(explorer.app(), host="127.0.0.1", port=port, log_level="warning")
    )
    try:
        server.run()
    except SystemExit:  # uvicorn's own way to say that the port is taken
        sys.stderr.write(f"port {port} is taken: give another with --port.\n")
        return 1
    return 0


def _warm(explorer: Explorer) -> None:
    for reader in explorer.readers.values():
        try:
            reader.warm()
        except (ExperimentError, OSError) as error:  # the page that needs it says so again
            sys.stderr.write(f"{reader.experiment.name}: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
