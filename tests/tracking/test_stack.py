"""The tracking stack: as processes, really; as containers, what can be said without an engine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.scripts import module_of

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
VARIABLE = re.compile(r"\$\{(\w+)(?:(:?[?+-])([^}]*))?\}")


@pytest.fixture(scope="module")
def stack():
    return module_of("docker/local_stack.py")


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))


def texts(node):
    if isinstance(node, dict):
        node = [*node.keys(), *node.values()]
    if isinstance(node, list):
        for item in node:
            yield from texts(item)
    else:
        yield str(node)


@pytest.mark.slow
def test_runs_at_once_into_the_stack_and_nothing_is_missing(stack, tmp_path):
    """With PostgreSQL where it is installed, else with SQLite; the same script as the experiment's."""
    installed = stack.postgres_programs() is not None
    out = tmp_path / "figures.json"
    words = ("--runs", "2", "--steps", "200", "--out", str(out), *([] if installed else ["--sqlite"]))
    script = ROOT / "experiments" / "reliability" / "tracking_stack.py"
    done = subprocess.run((sys.executable, str(script), *words), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(out.read_text())
    assert figures["database"].startswith("PostgreSQL" if installed else "SQLite")
    assert figures["lost"] == 0
    assert figures["runs_finished"] == 2
    assert figures["values_expected"] == 2 * 200 * 12
    assert all(figures[name] == 0 for name in figures if name.endswith(("_missing", "_twice", "_different", "_on_disk")))


def test_a_stack_that_is_kept_needs_a_password(stack, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "POSTGRES_PASSWORD"}
    command = (sys.executable, str(DOCKER / "local_stack.py"), "--folder", str(tmp_path / "kept"))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "POSTGRES_PASSWORD must be set for a stack that is kept (--folder); found none.\n"
    assert not (tmp_path / "kept").exists()


def test_a_process_that_does_not_start_is_an_error_with_its_last_words_and_leaves_nothing(stack, tmp_path):
    log = tmp_path / "log"
    command = (sys.executable, "-c", "import sys; sys.exit('no such port')")
    with (
        pytest.raises(stack.StackError, match="must start; found that it has ended: no such port"),
        stack.process(command, log, dict(os.environ), stack.signal.SIGTERM) as made,
    ):
        stack.wait_for(made, log, lambda: False)
    assert made.returncode == 1
    stubborn = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    stack.STOP_S, before = 0.2, stack.STOP_S
    try:
        with stack.process((sys.executable, "-c", stubborn), log, dict(os.environ), stack.signal.SIGTERM) as made:
            stack.wait_for(made, log, lambda: "up" in log.read_text())
    finally:
        stack.STOP_S = before
    assert made.returncode == -stack.signal.SIGKILL


def test_nothing_listens_to_the_world(stack, compose):
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:5000:5000"]
    assert all("network_mode" not in service and "privileged" not in service for service in compose["services"].values())
    text = (DOCKER / "local_stack.py").read_text(encoding="utf-8")
    assert "listen_addresses=127.0.0.1" in text
    assert "0.0.0.0" not in text


def test_passwords_come_from_the_environment_and_have_no_default(compose):
    found = [match for text in texts(compose) for match in VARIABLE.finditer(text)]
    passwords = [match for match in found if "PASSWORD" in match[1]]
    assert len(passwords) == 2
    assert all(match[2] == ":?" and match[3] for match in passwords)  # compose stops with these words where it is not set
    for name, service in compose["services"].items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|SECRET", key):
                assert VARIABLE.fullmatch(value), (name, key)
        assert not VARIABLE.search(str(service.get("command", ""))), "a password on a command line is seen by every process"


def test_the_services_fit_together(compose):
    services = compose["services"]
    assert set(services) == {"postgres", "mlflow", "worker"}
    for service in services.values():
        for name, wanted in service.get("depends_on", {}).items():
            assert wanted == {"condition": "service_healthy"}
            assert services[name]["healthcheck"]["test"][0] == "CMD"
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in compose["volumes"]
    database, server = services["postgres"]["environment"], services["mlflow"]
    words = dict(word.lstrip("-").partition("=")[::2] for word in server["command"][1:])
    assert words["backend-store-uri"] == f"postgresql+psycopg2://{database['POSTGRES_USER']}@postgres:5432/{database['POSTGRES_DB']}"
    assert server["environment"]["PGPASSWORD"] == database["POSTGRES_PASSWORD"]
    uri = services["worker"]["environment"]["MLFLOW_TRACKING_URI"]
    assert uri.removeprefix("http://") in words["allowed-hosts"].split(",")
    assert f"{words['artifacts-destination']}" in [volume.partition(":")[2] for volume in server["volumes"]]


def test_the_image_is_built_from_what_is_there(compose):
    """Every file that is copied exists, folders that become volumes belong to the user, and the build takes torch from an argument."""
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    assert [word for word, _ in lines][:2] == ["ARG", "FROM"]
    for rest in (rest for word, rest in lines if word == "COPY"):
        assert all((ROOT / name).exists() for name in rest.split()[:-1]), rest
    arguments = dict(rest.partition("=")[::2] for word, rest in lines if word == "ARG")
    assert arguments["TORCH_INDEX"].endswith("/cpu")
    assert set(compose["services"]["worker"]["build"]["args"]) <= set(arguments)
    assert "USER unlearn" in text
    owned = re.search(r"install -d -o unlearn -g unlearn ([^&\n]*)", text)[1].split()
    mounted = {volume.partition(":")[2] for name in ("mlflow", "worker") for volume in compose["services"][name]["volumes"]}
    assert mounted == set(owned)


def test_the_database_driver_is_pinned_and_an_extra():
    assert re.search(r"^psycopg2-binary==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert 'postgres = ["psycopg2-binary"]' in (ROOT / "pyproject.toml").read_text()
    assert ".[postgres]" in (DOCKER / "Dockerfile").read_text()
