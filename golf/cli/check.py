"""`golf check`: prove a finished run again, from its folder alone."""

from __future__ import annotations

from golf.common.errors import ConfigError
from golf.launch.compose.rerun import Command, read_line

COMMAND = Command("check", ("runtime",))

PAGE = """golf check run=DIR [runtime=OPTION] [runtime.key=value]

Proves a finished run again, in a process that did not train it and from what its folder holds: reads DIR/artifact.golf
back into a new model, scores it without overlap, and holds that against result.json. Then, on a passage of validation
text and through the run's own evaluator: later tokens are changed, and no earlier prediction may move; positions left
out change nothing for the others; nothing of the text is remembered; every target counts once; the probabilities of
all tokens sum to 1. What is wrong names the technique. A table has the field's rules, one a row: pass, fail, or not
run with what would look at it. The result is kept in DIR/evals/; the last line is its path.

  run=DIR            a finished run (`golf runs` lists them)
  runtime=OPTION     auto, cpu, cuda; the run's own by default, always one process

  golf check run=outputs/2026-01-31/my_run
  golf check run=outputs/2026-01-31/my_run runtime=cpu

Exit code 3: something is wrong, or a rule broken.
"""


def run(argv: list[str]) -> int:
    """Check, print. Raises ConfigError for a mistake, DataError or ArtifactError for bad files."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    request = read_line(COMMAND, argv)
    if request.multirun:
        raise ConfigError("golf check proves with one setting: leave out --multirun")
    from golf.cli.tables import Column, Table, print_table
    from golf.launch.work.check import check
    from golf.launch.work.loaded import loaded_runs, progress_on_stderr

    with progress_on_stderr("proving"):
        ((job, loaded),) = loaded_runs(request)
        found = check(job, loaded)
    table = Table(Column("rule", right=False), Column("", right=False), Column("by", right=False, prose=True))
    for one in found.rules:
        table.add_row(*one)
    print_table(table)
    print(f"val_bpb {found.score.val_bpb:.4f}, contiguous, {found.score.targets:,} targets")
    for one in loaded.run.record.get("retried") or []:
        print(f"{one['tokens']:,} tokens a pass did not fit into memory before; {one['micro_tokens']:,} did since")
    for one in loaded.run.record.get("resumed") or []:
        print(f"went on after step {one['step']}; {one['lost_steps']} steps were done twice")
    for sentence in found.violations:
        print(f"wrong: {sentence}")
    print(found.proof)
    print(found.path)
    return 3 if found.violations or any(one.state == "fail" for one in found.rules) else 0
