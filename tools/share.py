"""Push the last run to the DVC remote, and every run that the run cache knows, whole: `python -m tools.share`.

`dvc push --run-cache` of DVC 3.67 sends the list of runs and the outputs that dvc.lock names now. The outputs of
the other runs stay behind, and so do all metrics, which git has and DVC keeps for the run cache alone; a
colleague's `dvc repro --pull` then finds the run, misses its metrics, and trains again.
"""

import argparse
import sys
from collections.abc import Sequence

from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo

from stages.common import failure
from stages.common.failure import StageError


def main(arguments: Sequence[str]) -> None:
    """Push and count; `StageError` when the run is not here, or the remote is missing or took not all of it."""
    options = _parse(arguments)
    try:
        with Repo() as repo:
            _refuse_what_is_not_here(repo)
            pushed = repo.push(remote=options.remote)  # first, as it stops where the remote cannot be reached
            with lock_repo(repo):
                pushed += push_outputs(repo, options.remote)
    except DvcException as error:
        raise StageError(f"{error}; mend that, then run again") from None
    except OSError as error:
        raise StageError(
            f"the remote cannot be used: {error}; mend that (see: dvc remote list), then run again"
        ) from None
    print(f"share: {pushed} files pushed")


def push_outputs(repo: Repo, remote: str | None) -> int:
    """Push what the runs of the run cache made, as far as the cache still has it; return the number of files."""
    runs = repo.stage_cache.push(remote)
    pushed = len(runs)
    for store, objects in repo.stage_cache.get_used_objs(runs).items():
        kept = {each for each in objects if repo.cache.local.exists(each.value)}  # `dvc gc` took the others
        result = repo.cloud.push(kept, remote=remote, odb=store)
        if result.failed:
            raise StageError(f"{len(result.failed)} files were not pushed, for the reasons above; run again")
        pushed += len(result.transferred)
    return pushed


def _refuse_what_is_not_here(repo: Repo) -> None:
    """DVC would name the hashes and push nothing, with success."""
    outs = [out for out in repo.index.outs if out.use_cache and out.can_push and out.hash_info]
    absent = [str(out) for out in outs if not repo.cache.local.exists(out.hash_info.value)]
    if absent:
        raise StageError(
            f"{len(absent)} of the {len(outs)} outputs to push are not in DVC's cache here: {', '.join(absent)}; "
            "run: dvc pull, or dvc repro where no remote has them, and then this again"
        )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.share", description=__doc__.partition("\n")[0])
    parser.add_argument("remote", nargs="?", help="the default one, when not named")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(failure.run("share", main))
