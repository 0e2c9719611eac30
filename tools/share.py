"""Push the last run and every run in the run cache, complete, to the DVC remote: `python -m tools.share`.

`dvc push --run-cache` of DVC 3.67 pushes the list of runs and the outputs in the current dvc.lock. It leaves out
the outputs of other runs, and all metrics, because these are in git. A colleague's `dvc repro --pull` then finds
the run without its metrics, and trains again.
"""

import argparse
import sys
from collections.abc import Sequence

from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo

from stages.common import failure
from stages.common.failure import StageError


def main(arguments: Sequence[str]) -> None:
    """Push and count; raises `StageError` if outputs are missing, or the remote cannot be used."""
    options = _parse(arguments)
    try:
        with Repo() as repo:
            _refuse_missing_outputs(repo)
            pushed = repo.push(remote=options.remote)  # first: it fails if the remote cannot be reached
            with lock_repo(repo):
                pushed += push_outputs(repo, options.remote)
    except DvcException as error:
        raise StageError(f"{error}; fix that, then run again") from None
    except OSError as error:
        raise StageError(
            f"cannot use the remote: {error}; fix that (see: dvc remote list), then run again"
        ) from None
    print(f"share: {pushed} files pushed")


def push_outputs(repo: Repo, remote: str | None) -> int:
    """Push the outputs of all runs in the run cache that are still in the cache; return the number of files."""
    runs = repo.stage_cache.push(remote)
    pushed = len(runs)
    for store, objects in repo.stage_cache.get_used_objs(runs).items():
        kept = {each for each in objects if repo.cache.local.exists(each.value)}  # `dvc gc` removed the others
        result = repo.cloud.push(kept, remote=remote, odb=store)
        if result.failed:
            raise StageError(f"{len(result.failed)} files were not pushed (see the lines above); run again")
        pushed += len(result.transferred)
    return pushed


def _refuse_missing_outputs(repo: Repo) -> None:
    """Raise `StageError` if outputs are missing, where `dvc push` pushes nothing and exits with 0."""
    outs = [out for out in repo.index.outs if out.use_cache and out.can_push and out.hash_info]
    absent = [str(out) for out in outs if not repo.cache.local.exists(out.hash_info.value)]
    if absent:
        raise StageError(
            f"{len(absent)} of the {len(outs)} outputs to push are missing from DVC's cache: {', '.join(absent)}; "
            "run: dvc pull, or dvc repro if no remote has them, then run again"
        )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.share", description=__doc__.partition("\n")[0])
    parser.add_argument("remote", nargs="?", help="default: the default remote")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(failure.run("share", main))
