"""Many commands that do nothing: what it costs to start, coordinate and record one. Durable results, no workspaces.

Start-up is a run of one command; the steady state is what each further one of COUNT takes beyond that."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bench.compare import interleaved, less, place, timed, told

COUNT, ROUNDS = 1000, 3
ROOT = Path(__file__).resolve().parents[1]

Peers = dict[str, Callable[[], float]]

_DASK = """
import subprocess, sys
from distributed import Client, LocalCluster
if __name__ == "__main__":
    slots, count = map(int, sys.argv[1:])
    with LocalCluster(n_workers=slots, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            futures = client.map(lambda _: subprocess.run(["true"], check=True).returncode, range(count), pure=False)
            assert client.gather(futures) == [0] * count
"""
_HYPERQUEUE = """
import sys
from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig
slots, count = map(int, sys.argv[1:])
with LocalCluster() as cluster:
    cluster.start_worker(WorkerConfig(cores=slots))
    client, job = cluster.client(), Job()
    for _ in range(count):
        job.program(["true"], stdout=None, stderr=None)
    client.wait_for_jobs([client.submit(job)])
"""


def main() -> None:
    count = less(COUNT)
    root = Path(tempfile.mkdtemp(dir=place(), prefix="necrocode-bench-"))
    try:
        for slots in (2, 8):
            one = interleaved(_peers(root, slots, 1), ROUNDS)
            told(f"start-up: 1 command, {slots} at once", one, "ms")
            all_of_them = interleaved(_peers(root, slots, count), ROUNDS)
            told(f"{count} commands, {slots} at once", all_of_them, "ms")
            told(f"steady state: each of {count} commands, {slots} at once", _steady(one, all_of_them, count))
    finally:
        shutil.rmtree(root)


def _steady(one: dict[str, list[float]], every: dict[str, list[float]], count: int) -> dict[str, list[float]]:
    first = {name: sorted(seconds)[len(seconds) // 2] for name, seconds in one.items()}
    return {name: [max(0.0, whole - first[name]) / (count - 1) for whole in seconds] for name, seconds in every.items()}


def _peers(root: Path, slots: int, count: int) -> Peers:
    numbers = "\n".join(map(str, range(count)))
    tasks, makefile = root / f"tasks{count}.toml", root / f"Makefile{count}"
    tasks.write_text("".join(f'[[task]]\nid = "t{n}"\ncommand = "true"\n' for n in range(count)))
    makefile.write_text("all:" + "".join(f" t{n}" for n in range(count)) + "\nt%:\n\t@true\n")
    ours = [sys.executable, "-m", "necrocode", "--state-dir", str(root / "state"), "run", "-q", "--workspace", "none"]
    argvs = {
        "necrocode run": [*ours, "-n", str(slots), str(tasks)],
        "xargs -P": ["xargs", "-P", str(slots), "-n1", "true"],
        "make -j": ["make", "-s", "-j", str(slots), "-f", str(makefile)],
        "GNU parallel": ["parallel", "-j", str(slots), "true"],
    }
    peers: Peers = {name: partial(_run, argv, root, numbers) for name, argv in argvs.items() if shutil.which(argv[0])}
    if shutil.which("tsp"):
        peers["task-spooler"] = partial(_run, ["sh", "-c", _spooled(root, slots, count)], root)
    if shutil.which("nq"):
        peers["nq, a queue for each slot"] = partial(_run, ["sh", "-c", _queued(root, slots, count)], root)
    for name, module, program in (("dask", "distributed", _DASK), ("HyperQueue", "hyperqueue", _HYPERQUEUE)):
        if importlib.util.find_spec(module):
            script = root / f"{module}_peer.py"
            script.write_text(program)
            peers[name] = partial(_run, [sys.executable, str(script), str(slots), str(count)], root)
    peers["a thread pool, subprocess.run"] = partial(_threads, slots, count)
    known = ("GNU parallel", "task-spooler", "nq, a queue for each slot", "dask", "HyperQueue")
    if missing := [name for name in known if name not in peers]:
        print(f"not installed, left out: {', '.join(missing)} (bench/peers.sh installs them)")
    return peers


def _spooled(root: Path, slots: int, count: int) -> str:
    socket = f"export TS_SOCKET={root}/tsp TMPDIR={root} TS_MAXFINISHED=2000; tsp -S {slots};"
    return f"{socket} i=0; while [ $i -lt {count} ]; do tsp -n true >/dev/null; i=$((i+1)); done; tsp -w; tsp -K"


def _queued(root: Path, slots: int, count: int) -> str:
    """nq runs one after another, so that each slot gets a queue of its own."""
    into = f"NQDIR={root}/nq/$((i % {slots})) nq -q -c true"
    made = f"rm -rf {root}/nq; s=0; while [ $s -lt {slots} ]; do mkdir -p {root}/nq/$s; s=$((s+1)); done;"
    waited = f"for d in {root}/nq/*; do NQDIR=$d nq -w; done"
    return f"{made} i=0; while [ $i -lt {count} ]; do {into}; i=$((i+1)); done; {waited}"


def _run(argv: list[str], cwd: Path, numbers: str = "") -> float:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return timed(
        lambda: subprocess.run(argv, input=numbers, text=True, cwd=cwd, env=env, capture_output=True, check=True)
    )


def _threads(slots: int, count: int) -> float:
    def all_of_them() -> None:
        with ThreadPoolExecutor(slots) as pool:
            list(pool.map(lambda _: subprocess.run(["true"], check=True), range(count)))

    return timed(all_of_them)
