#!/bin/bash
# Several plain hosts over ssh: docs/clusters/hosts.sh CHIEF:PORT HOST:PORT ..., with ports that nothing uses. Each host
# has this repository at the same commit in the folder named by $FOLDER (default: classifier), after `make setup`, with
# runtime.strategy: multi_worker in params.yaml. The names must reach the hosts from each other, not only from here.
# $SSH may have options: SSH='ssh -p 2200'.

set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 CHIEF:PORT HOST:PORT ..." >&2; exit 2; }
addresses=$(printf '"%s",' "$@")

start() { # the host's index, its address, and what it runs
    local task="{\"cluster\":{\"worker\":[${addresses%,}]},\"task\":{\"type\":\"worker\",\"index\":$1}}"
    local host=${2%:*}
    host=${host#"["} host=${host%"]"} # ssh wants an IPv6 address bare
    # -tt: when this script is stopped, what it started is, too
    ${SSH:-ssh} -tt "$host" "cd '${FOLDER:-classifier}' && source .venv/bin/activate && dvc repro preprocess &&
        TF_CONFIG='$task' $3" < /dev/null
}

index=0
for address in "$@"; do
    if [ $index = 0 ]; then run="dvc repro"; else run="python -m stages.train"; fi
    start $index "$address" "$run" &
    index=$((index + 1))
done
code=0
for _ in "$@"; do wait -n || code=$?; done
exit $code
