"""Run many experiments on the machines of a Ray cluster: `python -m tools.sweep -S train.batch_size=32,64`.

Each is an ordinary DVC experiment of the last commit, made in a clone on whichever machine has the cores free, and
brought here by git's remote and DVC's. Its name is made of its choices: started again, a sweep runs what git's
remote has not yet. On one machine `dvc queue` does it without Ray.
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
    """Run what is missing, say how each ended, bring the results; `StageError` when one failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.sweep", description=__doc__.partition("\n")[0])
    parser.add_argument("-S", "--set-param", action="append", required=True, help="as dvc exp run --queue has it")
    trials = expand(parser.parse_args(arguments).set_param)
    ask = partial(run, folder=Path(), error=StageError)
    if ask("git status --porcelain -uno") or ask("git rev-list -1 HEAD --not --remotes=origin"):
        raise StageError("the machines get the last commit from origin; commit, git push, then run again")
    if not ask("python -m dvc remote list"):
        raise StageError("no DVC remote, which brings the models; name one with: dvc remote add --default")
    commit, url = ask("git rev-parse HEAD"), ask("git remote get-url origin")
    refs = ask(f"git ls-remote origin refs/exps/{commit[:2]}/{commit[2:]}/*").splitlines()
    there = {ref.rpartition("/")[2] for ref in refs} & trials.keys()
    print(f"{len(trials)} experiments, {len(there)} of them in origin already", flush=True)
    there |= on_cluster(url, commit, {name: trials[name] for name in trials if name not in there})
    if there:
        ask(f"python -m dvc exp pull --no-cache origin {' '.join(sorted(there))}")
    if len(there) < len(trials):
        raise StageError(f"{len(trials) - len(there)} of {len(trials)} experiments failed, as the lines above say")
    print("All are here: dvc exp show --only-changed. A model: dvc exp pull origin NAME, then dvc exp apply NAME")


def expand(choices: Sequence[str]) -> dict[str, list[str]]:
    """Return the choices of each experiment by its name; the grammar is DVC's: `a=1,2`, `a=range(1,5)`."""
    try:
        found = [one["params.yaml"] for one in get_hydra_sweeps(to_path_overrides(choices))]
    except (HydraException, KeyError):
        raise StageError(f"-S {' '.join(choices)}: not written as in -S train.batch_size=32,64") from None
    return {f"sweep-{hashlib.sha256(repr(sorted(one)).encode()).hexdigest()[:8]}": one for one in found}


def on_cluster(url: str, commit: str, trials: dict[str, list[str]]) -> set[str]:
    """Run the trials, each on as many cores as it has threads, and return the names of those that succeeded."""
    try:
        import ray  # here, as it is an extra

        ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    except ModuleNotFoundError:
        raise StageError("Ray is not installed; run, on each machine: pip install 'ray==2.60.*'") from None
    except ConnectionError:
        raise StageError("no Ray cluster reaches this machine; begin one here with: ray start --head") from None
    largest = int(max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
    usual = str(read(Path("params.yaml"))["runtime"]["threads"])
    threads = {
        name: int(dict(c.split("=", 1) for c in trials[name]).get("runtime.threads", usual)) for name in trials
    }
    if max(threads.values(), default=0) > largest:  # Ray would wait for such a machine for ever
        raise StageError(f"no machine has the cores for runtime.threads; add: -S runtime.threads={largest}")
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
    """Run one experiment in a clone, push it, return the machine's name; `RuntimeError` says what went wrong."""
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        do = partial(run, folder=Path(folder), error=RuntimeError)
        do("git clone --quiet --no-checkout", url, ".")
        do(f"git checkout --quiet --detach {commit}")
        # Where a machine keeps the datasets that it fetched, it keeps DVC's cache for all trials too.
        kept = do(
            "python -c", "from stages.datasets.registry import cache_folder; print(cache_folder().absolute())"
        )
        do("python -m dvc config --local cache.dir", f"{kept}/dvc")
        do(f"python -m dvc exp run --pull --name {name}", *(f"--set-param={choice}" for choice in chosen))
        do(f"python -m dvc exp push --force origin {name}")
    return socket.gethostname()


def run(words: str, *more: str, folder: Path, error: type[Exception]) -> str:
    """Return what a command of this environment prints; `error` with the reason where it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command, environment = [*words.split(), *more], {**os.environ, "PATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        # A stage's own line stands before DVC's on the same.
        said = [line for line in done.stderr.strip().splitlines() if not line.startswith("ERROR: failed to repro")]
        raise error(
            f"on {socket.gethostname()}: '{words}': {said[-1] if said else f'exited with {done.returncode}'}"
        )
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(failure.run("sweep", main))
