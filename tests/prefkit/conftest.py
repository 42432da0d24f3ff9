import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for dumps.py, the fixtures' helper


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The folder of the socket of a PostgreSQL server of our own, where its programs are installed."""
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))  # where Debian has them, not on PATH
    initdb = servers[-1] if servers else shutil.which("initdb")
    if not initdb:
        pytest.skip("no PostgreSQL server is installed")
    folder = tempfile.mkdtemp(prefix="pg", dir="/tmp")  # a socket's path must be short
    as_other = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        if not shutil.which("runuser") or "postgres" not in {user.pw_name for user in pwd.getpwall()}:
            pytest.skip("root needs an account postgres, and runuser")
        shutil.chown(folder, "postgres", "postgres")
        as_other = ["runuser", "-u", "postgres", "--"]

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [*as_other, str(Path(initdb).with_name(program)), *arguments],
            check=True,
            cwd="/",
            stdout=subprocess.DEVNULL,
        )

    run("initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "postgres", "--no-sync")
    run("pg_ctl", "-D", f"{folder}/data", "-w", "-l", f"{folder}/log", "-o", f"-k {folder} -h ''", "start")
    yield folder
    run("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres(postgres_server) -> str:
    """The URL of an empty PostgreSQL database."""
    import psycopg

    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(f"host={postgres_server} user=postgres", autocommit=True) as c:
        c.execute(f'CREATE DATABASE "{name}"')
    return f"postgresql://postgres:hush-hush@/{name}?host={postgres_server}"
