"""docs/clusters: what can be tried of them without the machines that they are for."""

import json
import os
import re
import subprocess
from pathlib import Path

from tests.project import ROOT

# Writes what it is to run into a file named as the host.
SSH = """#!/bin/bash
printf %s "$3" > "$(dirname "$0")/$2"
"""


def test_the_hosts_script_starts_each_host_with_its_own_index(tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    addresses = ["[fd00::1]:2222", "host2.example.org:2223", "10.0.0.3:2224"]
    script = ROOT / "docs/clusters/hosts.sh"
    subprocess.run(["bash", script, *addresses], env={**os.environ, "SSH": str(ssh)}, check=True, timeout=60)
    runs = ["dvc repro", "python -m stages.train", "python -m stages.train"]
    for index, (host, run) in enumerate(zip(["fd00::1", "host2.example.org", "10.0.0.3"], runs, strict=True)):
        command = re.search("TF_CONFIG='(.*)' (.*)", (tmp_path / host).read_text())
        assert command is not None
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        assert (json.loads(command[1]), command[2]) == (task, run)
