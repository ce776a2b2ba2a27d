"""Two hosts, as two network namespaces joined by a virtual cable: a rank in each."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

import torch_cpullm
from tests.distributed.model_ranks import prompt
from tests.distributed.test_ccl import needs_oneccl
from torch_cpullm.testing.models import bundled_model

ROOT = Path(__file__).parent.parent.parent
ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = "29713"  # no namespace has another program in it
DEADLINE_S = 300.0


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


@pytest.fixture
def hosts():
    """Names of two namespaces that reach each other, and nothing else."""
    if shutil.which("ip") is None:
        pytest.skip("the command ip is not installed (package iproute2)")
    name = f"cpullm{secrets.token_hex(3)}"
    namespaces, cables = (f"{name}a", f"{name}b"), (f"{name}a", f"{name}b")
    with ExitStack() as stack:
        for namespace in namespaces:
            try:
                ip("netns", "add", namespace)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
            stack.callback(ip, "netns", "delete", namespace)
        try:
            ip(
                "link",
                "add",
                cables[0],
                "netns",
                namespaces[0],
                "type",
                "veth",
                "peer",
                cables[1],
                "netns",
                namespaces[1],
            )
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no virtual cable here: {error.stderr.strip()}")
        for namespace, cable, address in zip(namespaces, cables, ADDRESSES, strict=True):
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", cable)
            ip("-n", namespace, "link", "set", cable, "up")
            ip("-n", namespace, "link", "set", "lo", "up")
        yield namespaces


def run_in(hosts, commands):
    """What the last line of each command says, one in each host."""
    ranks = []
    for rank, (host, command) in enumerate(zip(hosts, commands, strict=True)):
        seat = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": PORT}
        environment = {**os.environ, **seat, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        ranks.append(
            subprocess.Popen(
                ["ip", "netns", "exec", host, sys.executable, "-m", *command],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        found = []
        for rank in ranks:
            out, errors = rank.communicate(timeout=DEADLINE_S)
            assert rank.returncode == 0, errors
            found.append(json.loads(out.splitlines()[-1]))
        return found
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


@pytest.mark.parametrize("transport", [pytest.param("ccl", marks=needs_oneccl), "gloo"])
def test_collectives_between_two_hosts(hosts, transport):
    assert run_in(hosts, [["tests.distributed.two_hosts_rank", transport]] * 2) == [[], []]


@pytest.mark.parametrize("transport", [pytest.param("ccl", marks=needs_oneccl), "gloo"])
def test_torchrun_shares_a_model_between_two_hosts(hosts, transport, monkeypatch):
    monkeypatch.setenv("TORCH_CPULLM_COMM", transport)
    torchrun = ["torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", ADDRESSES[0]]
    torchrun += ["--master-port", PORT, "-m", "tests.distributed.two_hosts_model"]
    commands = [[*torchrun[:1], "--node-rank", str(rank), *torchrun[1:]] for rank in range(2)]
    first, second = run_in(hosts, commands)
    assert first["network"] != second["network"]
    expected = torch_cpullm.optimize(bundled_model()).generate(**prompt(), max_new_tokens=32, do_sample=False)
    for found in (first, second):
        assert found["hosts"] == 2
        assert found["transport"] == transport
        assert found["tokens"] == expected.tolist()
