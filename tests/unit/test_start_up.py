"""What a command need not wait for: packages that take long to import, before they are needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_mistake_is_told_without_torch_and_a_check_without_its_compiler(tmp_path: Path) -> None:
    """In a process of its own: the modules that are there after each."""
    program = """
import sys
from golf.cli.main import main
assert main(["train", "seed=1,2"]) == main(["train", "optimizer.matrxlr=1"]) == 2
print(sorted({"torch", "pydantic", "rich", "wandb", "pyarrow"} & set(sys.modules)))
assert main(["train", "recipe=naive_baseline", "runtime=cpu", "logger=jsonl", "--prepare", "hydra.run.dir=run"]) == 0
print(sorted({"sympy", "torch._dynamo", "rich", "wandb", "pyarrow"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert (first, last) == ("[]", "[]"), done.stdout
