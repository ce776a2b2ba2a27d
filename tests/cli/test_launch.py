"""`torch-cpullm launch`: real scripts that tell what they see, and what is said to mistakes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from torch_cpullm.cli import app as app_module
from torch_cpullm.cli import launch
from torch_cpullm.cli.app import app
from torch_cpullm.machine import openmp
from torch_cpullm.machine.container import cpu_quota
from torch_cpullm.machine.preloading import find_libraries
from torch_cpullm.machine.settings import Host
from torch_cpullm.machine.topology import Topology, read_topology

# openmp.py by its path: the package would take seconds to import.
REPORT = f"""
import json, os, runpy, sys
import torch
torch.ones(1 << 20).add_(1)  # a parallel region
print(json.dumps({{
    "process": os.getpid(),
    "threads": torch.get_num_threads(),
    "cpus": sorted(os.sched_getaffinity(0)),
    "arguments": sys.argv[1:],
    "openmp": [path.rsplit("/", 1)[-1] for path in runpy.run_path({openmp.__file__!r})["runtimes_in_use"]()],
    "preload": os.environ.get("LD_PRELOAD"),
    "variable": os.environ["OMP_NUM_THREADS"],
}}))
sys.exit(7)
"""
OF_RUNTIMES = ("OMP_", "GOMP_", "KMP_", "MKL_", "LD_PRELOAD", "GLIBC_TUNABLES")


def start(*arguments):
    """What a launch from a shell ends with: the script's report, exit status 7, and what launch said itself."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OF_RUNTIMES)}
    process = subprocess.Popen(
        [sys.executable, "-m", "torch_cpullm.cli", "launch", *map(str, arguments)],
        env={**inherited, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    output, errors = process.communicate()
    assert process.returncode == 7, errors
    seen = json.loads(output)  # and nothing else is on stdout
    assert seen["process"] == process.pid  # so exit codes and signals are the script's own
    return seen, errors


def refuse(*arguments):
    """The one line that a mistake is answered with."""
    result = CliRunner(env={"COLUMNS": "1000", "TERM": "dumb"}).invoke(app, ["launch", *arguments])
    assert result.exit_code == 2, result.output
    (line,) = result.output.splitlines()
    return line


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "report.py"
    file.write_text(REPORT)
    return file


@pytest.fixture
def executed(monkeypatch):
    """The CPUs, the command and the environment that would have replaced this process."""
    calls = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda *arguments: calls.append(arguments[1]))
    monkeypatch.setattr(os, "execvpe", lambda *arguments: calls.extend(arguments[1:]))
    return calls


def test_the_script_sees_what_was_chosen(script):
    seen, errors = start(script, "a", "--threads", "7")
    topology, quota = read_topology(), cpu_quota()
    widest = set(max(topology.nodes.values(), key=len))
    cpus = sorted(min(widest & set(core)) for core in topology.cores if widest & set(core)) or sorted(widest)
    assert seen["cpus"] == cpus
    assert seen["threads"] == int(seen["variable"]) == min(len(cpus), max(1, int(quota or len(cpus))))
    assert seen["arguments"] == ["a", "--threads", "7"]
    assert seen["openmp"] == ["libgomp.so.1"]
    assert seen["preload"] is None
    assert "OMP_NUM_THREADS" in errors


def test_the_script_runs_on_intels_runtime(script):
    library = find_libraries().get("intel")
    if library is None:
        pytest.skip("libiomp5 is not installed (pip install intel-openmp)")
    cpu = min(os.sched_getaffinity(0))
    seen, errors = start("--quiet", "--openmp", "intel", "--cpus", cpu, script)
    assert (seen["cpus"], seen["threads"]) == ([cpu], 1)
    assert seen["openmp"] == [library.rsplit("/", 1)[-1]]
    assert seen["preload"] == library
    assert errors == ""


def test_a_module_and_its_options(executed):
    result = CliRunner().invoke(
        app, ["launch", "--quiet", "--threads", "1", "-m", "package.tool", "--threads", "9", "-m"]
    )
    assert (result.exit_code, result.output) == (0, "")
    cpus, command, environment = executed
    assert command == [sys.executable, "-m", "package.tool", "--threads", "9", "-m"]
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "1"
    assert set(cpus) <= os.sched_getaffinity(0)


def test_a_dry_run_shows_and_starts_nothing(executed, script, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["launch", "--dry-run", str(script)])
    assert result.exit_code == 0
    assert executed == []
    assert result.stdout == ""
    assert "CPUs" in result.stderr
    (kept,) = [line.split() for line in result.stderr.splitlines() if line.startswith("OMP_NUM_THREADS")]
    assert kept == ["OMP_NUM_THREADS", "1", "kept,", "set", "by", "you"]


def test_a_command_of_ours_in_a_scripts_place(executed):
    result = CliRunner().invoke(app, ["launch", "--quiet", "generate", "demo", "--prompt", "x", "--threads"])
    assert (result.exit_code, result.output) == (0, "")
    expected = [sys.executable, "-m", "torch_cpullm.cli", "generate", "demo", "--prompt", "x", "--threads"]
    assert executed[1] == expected


def test_notes_are_shown(script, monkeypatch):
    never = replace(launch.this_host({}), huge_pages="never")
    monkeypatch.setattr(launch, "this_host", lambda _: never)
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["launch", "--dry-run", str(script)])
    assert "note: no huge pages; as root: echo madvise" in result.stderr


def test_mistakes_are_one_line(script, tmp_path, executed):
    missing = tmp_path / "none.py"
    assert refuse(str(missing)) == (
        f"script: expected a file or one of bench, generate, profile, found none at '{missing}'; for a module add -m "
        "before it"
    )
    assert refuse("--threads", "100000", str(script)).startswith("threads: expected 1 to ")
    assert refuse("--node", "4711", str(script)).startswith("node: expected one of ")
    assert refuse("--cpus", "100000", str(script)).startswith("cpus: expected some of ")
    assert refuse("--cpus", "a-b", str(script)) == "cpus: expected numbers and ranges like 0-3,8, got 'a-b'"
    for count in ("0", "two", "-1", "100000"):
        assert refuse("--sockets", count, str(script)).startswith("sockets: expected auto, or 1 to ")
    assert executed == []


@pytest.mark.parametrize("command", launch.COMMANDS)
def test_commands_in_a_scripts_place_exist(command):
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_one_rank_on_each_node(script, monkeypatch):
    machine = Topology(8, 8, 2, tuple((cpu,) for cpu in range(8)), {0: (0, 1, 2, 3), 2: (4, 5, 6, 7)}, (0, 0, 0))
    monkeypatch.setattr(launch, "this_host", lambda environment: Host(machine, environment=environment))
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["launch", "--dry-run", "--bind", "--sockets", "auto", str(script)]
    )
    assert (result.exit_code, result.stdout) == (0, "")
    rows = [line.split()[:5] for line in result.stderr.splitlines()]
    assert rows[:2] == [["CPUs", "of", "rank", "0", "0-3"], ["CPUs", "of", "rank", "1", "4-7"]]
    places = [row for row in rows if row[0] == "OMP_PLACES"]
    assert [row[3] for row in places] == ["0", "1"]
    assert [row[:2] for row in rows if row[0] == "OMP_NUM_THREADS"] == [["OMP_NUM_THREADS", "4"]]


def test_the_command_is_installed_under_its_name():
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'torch-cpullm = "{app_module.__name__}:app"' in pyproject
