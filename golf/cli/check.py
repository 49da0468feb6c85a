"""`golf check`: prove a finished run again, from its folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from golf.common.errors import ConfigError
from golf.export.scanned import is_submission
from golf.launch.compose.rerun import Command, Word, own_words, read_line

if TYPE_CHECKING:
    from golf.runs.rules import Rule

COMMAND = Command("check", ("runtime",), {"against": Word(), "artifact": Word()})

PAGE = """golf check run=DIR [against=DIR] [runtime=OPTION] [runtime.key=value]
golf check run=FOLDER [artifact=FILE] [--trust]

Proves a finished run again, in a process that did not train it and from what its folder holds: reads DIR/artifact.golf
back into a new model, scores it without overlap, and holds that against result.json. Then, on a passage of validation
text and through the run's own evaluator: later tokens are changed, and no earlier prediction may move; positions left
out change nothing for the others; nothing of the text is remembered; every target counts once; the probabilities of
all tokens sum to 1. What is wrong names the technique. A table has the field's rules, one a row: pass, fail, or not
run with what would look at it. The result is kept in DIR/evals/; the last line is its path.

  run=DIR            a finished run (`golf runs` lists them)
  runtime=OPTION     auto, cpu, cuda; the run's own by default, always one process
  against=DIR        runs that it is compared with, or folders of such, with commas between: whether they are scored on
                     the same text by the same rules; by default the runs of its sweep
  run=FOLDER         a submission's folder, as golf export writes it: the same rules as far as it shows them, and
                     whether file, requirements, logs and submission.json agree; nothing is written into it
  artifact=FILE      an artifact of that submission, several with commas between, which its file is to score in a
                     process of its own, on DATA_PATH and TOKENIZER_PATH; --trust allows that the file is run

  golf check run=outputs/2026-01-31/my_run
  golf check run=outputs/2026-01-31/my_run runtime=cpu
  golf check run=submission

Exit code 3: something is wrong, or a rule broken.
"""


def run(argv: list[str]) -> int:
    """Check, print. Raises ConfigError for a mistake, DataError or ArtifactError for bad files."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    named = Path(next((word[4:] for word in argv if word.startswith("run=")), "")).expanduser()
    if is_submission(named):
        return _of_folder(named, argv)
    request = read_line(COMMAND, argv)
    if request.words["artifact"]:
        raise ConfigError("artifact=…: a run has its own; a submission's folder takes one")
    if request.multirun:
        raise ConfigError("golf check proves with one setting: leave out --multirun")
    from golf.launch.work.check import check, others_of
    from golf.launch.work.loaded import loaded_runs, progress_on_stderr

    if request.run.record:
        request.run.result  # noqa: B018 (a broken or newer record ends here)
    others = others_of(request.run, request.words["against"])
    with progress_on_stderr("proving"):
        ((job, loaded),) = loaded_runs(request)
        found = check(job, loaded, others)
    _print(found.rules)
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


def _of_folder(folder: Path, argv: list[str]) -> int:
    """A submission's folder. Raises ConfigError for a mistake."""
    known = {"run": Word(), "artifact": Word()}
    words, left = own_words(known, [word for word in argv if word != "--trust"])
    if left:
        raise ConfigError(f"{left[0]}: of a submission's folder there is only artifact=FILE to say, and --trust")
    artifacts = [Path(one).expanduser() for one in str(words["artifact"] or "").split(",") if one]
    for one in artifacts:
        if not one.is_file():
            raise ConfigError(f"artifact={one}: there is no such file")
    from golf.launch.work.submission import rules_of

    rules = rules_of(folder, artifacts, "--trust" in argv)
    _print(rules)
    print(folder)
    return 3 if any(one.state == "fail" for one in rules) else 0


def _print(rules: Sequence[Rule]) -> None:
    from golf.cli.tables import Column, Table, print_table

    table = Table(Column("rule", right=False), Column("", right=False), Column("by", right=False, prose=True))
    for one in rules:
        table.add_row(*one)
    print_table(table)
