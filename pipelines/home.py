"""Dagster's home: the folder whose ``dagster.yaml`` says where runs and events are kept.

It is this checkout, which keeps them in SQLite below ``.dagster/``. Where the variable `POSTGRES`
names a database, it is a folder below ``.dagster/`` with the same file but for the storage.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path

import yaml

from assets.settings import ExperimentError
from pipelines.experiment import ROOT

POSTGRES = "DAGSTER_POSTGRES_URL"
"""Variable with the address of a database: ``postgresql://user:password@host:5432/name``."""

_FILE = "dagster.yaml"


def dagster_home() -> Path:
    """The home that counts; a database that it names answers.

    Raises:
        ExperimentError: the database cannot be used; says why and what to do.
    """
    if not os.environ.get(POSTGRES):
        return ROOT
    os.environ[POSTGRES] = _address(os.environ[POSTGRES])
    _check_answers(os.environ[POSTGRES])
    home = ROOT / ".dagster" / "postgres"
    home.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((ROOT / _FILE).read_text(encoding="utf-8"))
    # The variable and not its value: a password is never written down.
    config["storage"] = {"postgres": {"postgres_url": {"env": POSTGRES}}}
    from core.atomic import replacing

    with replacing(home / _FILE) as file:
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return home


def _address(written: str) -> str:
    """With its driver: SQLAlchemy 2.1 would look for another than dagster-postgres brings."""
    scheme, found, rest = written.partition("://")
    if not found or scheme not in ("postgres", "postgresql", "postgresql+psycopg2"):
        raise ExperimentError(
            f"{POSTGRES} is no address of a Postgres database: write "
            "postgresql://USER:PASSWORD@HOST:5432/NAME, or unset it to keep runs in .dagster/."
        )
    return f"postgresql+psycopg2://{rest}"


def _check_answers(address: str) -> None:
    import sqlalchemy
    import sqlalchemy.exc

    try:
        import_module("dagster_postgres")
        sqlalchemy.create_engine(address).connect().close()
    except ImportError as error:
        raise ExperimentError(
            f"{POSTGRES} is set, but {error.name} is not installed: install this project with the "
            "extra 'postgres' (pip install -e .[postgres]), or unset it."
        ) from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise _gone(error) from None


def lost_database(error: BaseException | None) -> ExperimentError | None:
    """What to say of an error that comes from a database which answers no more; None of others."""
    import sqlalchemy.exc

    seen = set[int]()  # what is raised while an error is handled may lead back to it
    while os.environ.get(POSTGRES) and error is not None and id(error) not in seen:
        if isinstance(error, sqlalchemy.exc.DBAPIError):
            return _gone(error)
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _gone(error: BaseException) -> ExperimentError:
    why = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    why = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", why)
    return ExperimentError(
        f"the database of {POSTGRES} does not answer ({why}). Start it, correct the variable, or "
        "unset it to keep runs in .dagster/. Tables that were written are kept: running again goes "
        "on from them."
    )
