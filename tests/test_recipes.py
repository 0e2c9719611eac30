"""docs/recipes: what can be tried of them without the machines that they are for."""

import json
import os
import re
import subprocess

from tests.project import ROOT


def test_the_hosts_script_starts_each_host_once_with_its_own_index() -> None:
    addresses = ["[fd00::1]:2222", "host2.example.org:2223", "10.0.0.3:2224"]
    done = subprocess.run(
        ["bash", ROOT / "docs/recipes/hosts.sh", *addresses],
        env={**os.environ, "SSH": "echo"},
        capture_output=True,
        text=True,
        check=True,
    )
    started = re.findall(r"^-tt (\S+) cd .*\n +TF_CONFIG='(.*)' (.*)", done.stdout, flags=re.MULTILINE)
    tasks = [(json.loads(config)["task"]["index"], host, command) for host, config, command in started]
    assert sorted(tasks) == [
        (0, "fd00::1", "dvc repro"),
        (1, "host2.example.org", "python -m stages.train"),
        (2, "10.0.0.3", "python -m stages.train"),
    ]
    assert all(json.loads(config)["cluster"] == {"worker": addresses} for _, config, _ in started)
