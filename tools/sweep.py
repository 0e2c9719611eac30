"""Run many experiments on the machines of a Ray cluster: `python -m tools.sweep -S train.batch_size=32,64`.

Each is an ordinary DVC experiment on the last commit. It runs in a clone on a machine with free cores, and comes
back through the git and DVC remotes. Its name is a hash of its params, so a sweep that is started again skips what
origin already has. On one machine, `dvc queue` does the same without Ray.
"""

import argparse
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import get_hydra_sweeps
from hydra.errors import HydraException

from stages.common import failure
from stages.common.failure import StageError
from stages.common.params import read


def main(arguments: Sequence[str]) -> None:
    """Run the missing experiments, report each, fetch the results; raises `StageError` if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.sweep", description=__doc__.partition("\n")[0])
    parser.add_argument("-S", "--set-param", action="append", required=True, help="as for dvc exp run --queue")
    trials = expand(parser.parse_args(arguments).set_param)
    ask = partial(run, folder=Path(), error=StageError)
    if ask("git status --porcelain -uno") or ask("git rev-list -1 HEAD --not --remotes=origin"):
        raise StageError(
            "uncommitted or unpushed changes: the machines clone the last commit from origin; commit, git push, "
            "then run again"
        )
    if not ask("python -m dvc remote list"):
        raise StageError(
            "no DVC remote is configured to transfer the models; run: dvc remote add --default NAME URL"
        )
    commit, url = ask("git rev-parse HEAD"), ask("git remote get-url origin")
    refs = ask(f"git ls-remote origin refs/exps/{commit[:2]}/{commit[2:]}/*").splitlines()
    there = {ref.rpartition("/")[2] for ref in refs} & trials.keys()
    print(f"{len(trials)} experiments, {len(there)} already in origin", flush=True)
    there |= on_cluster(url, commit, {name: trials[name] for name in trials if name not in there})
    if there:
        ask(f"python -m dvc exp pull --no-cache origin {' '.join(sorted(there))}")
    if len(there) < len(trials):
        raise StageError(f"{len(trials) - len(there)} of {len(trials)} experiments failed (see the lines above)")
    print("All results are here: dvc exp show --only-changed")
    print("To get a model: dvc exp pull origin NAME && dvc exp apply NAME")


def expand(choices: Sequence[str]) -> dict[str, list[str]]:
    """Return the params of each experiment by name, in DVC's syntax: `a=1,2`, `a=range(1,5)`."""
    try:
        found = [one["params.yaml"] for one in get_hydra_sweeps(to_path_overrides(choices))]
    except (HydraException, KeyError):
        raise StageError(f"-S {' '.join(choices)}: invalid; the syntax is -S train.batch_size=32,64") from None
    return {f"sweep-{hashlib.sha256(repr(sorted(one)).encode()).hexdigest()[:8]}": one for one in found}


def on_cluster(url: str, commit: str, trials: dict[str, list[str]]) -> set[str]:
    """Run the trials, each on as many cores as it has threads; return the names of those that succeeded."""
    try:
        import ray  # here, as it is an extra

        ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    except ModuleNotFoundError:
        raise StageError("Ray is not installed; run, on each machine: pip install 'ray==2.60.*'") from None
    except ConnectionError:
        raise StageError("no Ray cluster found; start one with: ray start --head") from None
    largest = int(max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
    usual = str(read(Path("params.yaml"))["runtime"]["threads"])
    threads = {
        name: int(dict(c.split("=", 1) for c in trials[name]).get("runtime.threads", usual)) for name in trials
    }
    if max(threads.values(), default=0) > largest:  # Ray would wait forever
        raise StageError(f"no machine has enough cores for runtime.threads; add: -S runtime.threads={largest}")
    tasks = {
        ray.remote(num_cpus=threads[name])(trial).remote(url, commit, name, trials[name]): name for name in trials
    }
    done = set()
    while tasks:
        (ended,), _ = ray.wait(list(tasks))
        name = tasks.pop(ended)
        try:
            how = f"done on {ray.get(ended)}"
            done.add(name)
        except ray.exceptions.RayError as error:
            how = f"failed {getattr(error, 'cause', error)}"
        print(f"{name}: {' '.join(trials[name])}: {how}", flush=True)
    return done


def trial(url: str, commit: str, name: str, chosen: Sequence[str]) -> str:
    """Run one experiment in a clone, push it, and return the host name; raises `RuntimeError` with the reason."""
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        do = partial(run, folder=Path(folder), error=RuntimeError)
        do("git clone --quiet --no-checkout", url, ".")
        do(f"git checkout --quiet --detach {commit}")
        # All trials on a machine share one DVC cache, next to the downloaded datasets.
        kept = do("python -c", "from stages.common.fetch import cache_folder; print(cache_folder().absolute())")
        do("python -m dvc config --local cache.dir", f"{kept}/dvc")
        do(f"python -m dvc exp run --pull --name {name}", *(f"--set-param={choice}" for choice in chosen))
        do(f"python -m dvc exp push --force origin {name}")
    return socket.gethostname()


def run(words: str, *more: str, folder: Path, error: type[Exception]) -> str:
    """Return the output of a command in this environment; raises `error` with the reason if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command, environment = [*words.split(), *more], {**os.environ, "PATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        # DVC repeats the failure after the stage's own message.
        lines = [
            line for line in done.stderr.strip().splitlines() if not line.startswith("ERROR: failed to repro")
        ]
        raise error(
            f"on {socket.gethostname()}: '{words}': {lines[-1] if lines else f'exited with {done.returncode}'}"
        )
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(failure.run("sweep", main))
