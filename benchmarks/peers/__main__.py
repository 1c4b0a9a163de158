"""The same training step in pcjax and in other libraries, on the CPU, interleaved.

python -m benchmarks.peers --json FILE --plot FILE
python -m benchmarks.peers --net vgg5 --rounds 10 --steps 2
"""

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro
from rich.console import Console

from benchmarks.peers import libraries, protocol, report
from benchmarks.peers.environments import InstallError, install, last_error
from benchmarks.peers.libraries import ENVIRONMENTS, METHODS, PCJAX, Peer
from benchmarks.peers.process import Process, ProcessError, thread_settings
from benchmarks.peers.protocol import Method
from benchmarks.peers.report import Row


@dataclass(frozen=True)
class Config:
    """Compares training iterations with other libraries, each in its environment."""

    rounds: int = 30
    """Rounds, in each of which everything takes its turn."""
    steps: int = 5
    """Timed iterations a turn; one goes before them."""
    peers: tuple[str, ...] = ()
    """Only these libraries (and pcjax), by name."""
    net: Literal["mlp", "vgg5"] = "mlp"
    """The paper's MLP, or the field's VGG5 with ReLU."""
    width: int | None = None
    """Hidden units of a layer, by default the paper's 1024; of VGG5 the channels of its
    first convolution, by default 32, a quarter of the published."""
    envs: Path = Path(".peer-envs")
    """Where their virtual environments are made, and found again."""
    json: Path | None = None
    """Where the result goes, besides the screen."""
    plot: Path | None = None
    """Where the picture goes."""


class Job(NamedTuple):
    """A library's process and the number of one of the programs it has built."""

    peer: str
    method: Method
    process: Process
    program: int


class Started(NamedTuple):
    """What could be started, and what could not and why.

    Attributes:
      processes: by name of the peer.
      jobs: what can be timed.
      rows: a row for every peer and method, without samples yet.
      libraries: by name of the peer, what the result says of it.
    """

    processes: dict[str, Process]
    jobs: list[Job]
    rows: dict[tuple[str, Method], Row]
    libraries: dict[str, dict[str, Any]]


def start(
    peers: Sequence[Peer],
    methods: Sequence[Method],
    envs: Path,
    settings: Mapping[str, str],
    console: Console,
) -> Started:
    """Installs, starts and builds; whatever fails is kept with its reason."""
    started = Started({}, [], {}, {})
    for peer in peers:
        console.print(f"{peer.name}: starting", highlight=False)
        entry = _describe(peer)
        started.libraries[peer.name] = entry
        try:
            python = _python(peer, envs, console)
            process = Process([python, "-m", *peer.module], settings)
        except (InstallError, ProcessError) as error:
            entry["failure"] = str(error)
            for method in methods:
                row = Row(peer.name, method, report.FAILED, str(error))
                started.rows[peer.name, method] = row
            continue
        started.processes[peer.name] = process
        entry.update(process.description)
        versions = entry["versions"]
        entry["version"] = next(iter(versions.values())) if peer.environment else ""
        entry["backend"] = versions.get("jax") or versions.get("torch", "")
        for method in methods:
            row, index = _build(peer.name, method, process)
            started.rows[peer.name, method] = row
            if index is not None:
                started.jobs.append(Job(peer.name, method, process, index))
    started.jobs.sort(key=lambda job: methods.index(job.method))
    return started


def _python(peer: Peer, envs: Path, console: Console) -> Path:
    if peer.environment is None:
        return Path(sys.executable)
    return install(
        ENVIRONMENTS[peer.environment],
        envs / peer.environment,
        lambda line: console.print(f"  {line}", highlight=False),
    )


def _describe(peer: Peer) -> dict[str, Any]:
    installs = ENVIRONMENTS[peer.environment].installs if peer.environment else ()
    return {
        "step": peer.step,
        "installs": [" ".join(arguments) for arguments in installs],
        "failure": "",
        "version": "",
        "backend": "",
    }


def _build(name: str, method: Method, process: Process) -> tuple[Row, int | None]:
    """The row and, if it can be timed, the number of the program."""
    try:
        answer = process.ask(build=method)
    except ProcessError as error:
        return Row(name, method, report.FAILED, str(error)), None
    if "unsupported" in answer:
        return Row(name, method, report.ABSENT, answer["unsupported"]), None
    checks = {"build_seconds": answer["build_seconds"], **answer["checks"]}
    wrong = report.complaint(checks)
    status = report.FAILED if wrong else report.MEASURED
    row = Row(name, method, status, wrong, checks=checks)
    return row, None if wrong else answer["index"]


def measure(started: Started, rounds: int, steps: int) -> list[Row]:
    """Lets every job take its turn in every round, every other round backwards."""
    samples: dict[tuple[str, Method], list[float]] = {}
    dead: dict[str, str] = {}
    for process in started.processes.values():
        process.start_idle_count()
    for index in range(rounds):
        for job in started.jobs if index % 2 == 0 else reversed(started.jobs):
            if job.peer in dead:
                continue
            try:
                answer = job.process.ask(step=job.program, count=steps)
            except ProcessError as error:
                dead[job.peer] = str(error)
                continue
            samples.setdefault((job.peer, job.method), []).append(answer["seconds"])
    rows = []
    for key, row in started.rows.items():
        if row.peer in dead and row.status == report.MEASURED:
            row = row._replace(status=report.FAILED, reason=dead[row.peer])
            started.libraries[row.peer]["failure"] = dead[row.peer]
        elif row.status == report.MEASURED:
            row = row._replace(samples=tuple(samples[key]))
        rows.append(row)
    for name, process in started.processes.items():
        started.libraries[name]["idle_cores"] = round(process.idle_load(), 4)
    order = list(dict.fromkeys(method for _, method in started.rows))
    rows.sort(key=lambda row: order.index(row.method))
    return report.compare(rows)


def main(config: Config) -> None:
    """Measures, prints, writes and draws."""
    peers = libraries.select(config.peers, config.net)
    console = Console(stderr=True)
    began = time.monotonic()
    width = config.width or protocol.WIDTHS[config.net]
    settings = {
        **thread_settings(),
        protocol.NET_VARIABLE: config.net,
        protocol.WIDTH_VARIABLE: str(width),
    }
    methods = METHODS[config.net]
    started = start(peers, methods, config.envs, settings, console)
    try:
        if PCJAX not in started.processes:
            raise SystemExit(f"pcjax: {started.libraries[PCJAX]['failure']}")
        console.print(f"{len(started.jobs)} programs, {config.rounds} rounds")
        rows = measure(started, config.rounds, config.steps)
    finally:
        for process in started.processes.values():
            process.close()
    layers = f"3072-3x{width}-10"
    if config.net == "vgg5":
        layers = f"VGG5, {width} to {4 * width} channels"
    net = f"{layers}, batch {protocol.BATCH_SIZE}, float32, CPU"
    report.show(rows, started.libraries, net)
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.peers", *_arguments()]),
        "settings": settings,
        "net": net,
        "rounds": config.rounds,
        "steps": config.steps,
        "seconds": round(time.monotonic() - began),
        "libraries": started.libraries,
        "time_ratios": report.time_ratios(rows),
        "notes": report.notes(rows, started.libraries),
        "rows": report.as_json(rows),
    }
    if config.json:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(result, indent=1) + "\n")
    if config.plot:
        report.plot(rows, started.libraries, net, config.plot)


def _arguments() -> list[str]:
    """The command line, without the folders of this machine."""
    return [last_error(word) if word.startswith("/") else word for word in sys.argv[1:]]


if __name__ == "__main__":
    main(tyro.cli(Config))
