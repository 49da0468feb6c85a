"""`golf export`: a finished run as a folder with one file that runs alone."""

from __future__ import annotations

from pathlib import Path

from golf.common.errors import ConfigError, did_you_mean
from golf.launch.compose.rerun import Command, Word, finished_run, own_words

COMMAND = Command(
    "export",
    (),
    {"out": Word(), "export.form": Word(default="readable", choices=("readable", "packed")), "against": Word()},
)

PAGE = """golf export run=DIR[,DIR2,…] out=FOLDER [export.form=packed] [against=FIGURE]

Writes a submission's folder: train_gpt.py, one file that trains, quantizes and scores exactly as the run did and needs
no golf; README.md and submission.json with the runs' figures, requirements.txt, and each run's log. The file holds the
definitions that the run's components need and no others, a user's own with them, and the run's config.

  run=DIR              a finished run; several, with commas between, are seeds of one config
  out=FOLDER           the folder to write, which must not exist
  export.form=packed   train_gpt.py as it is counted: minified, compressed, two lines that unpack themselves in memory;
                       readable by default. Both sizes are printed
  against=FIGURE       the best so far, which the README's p-value is of: 1.2244, or 1.2014±0.0019,n=3

In the folder: torchrun --standalone --nproc_per_node=N train_gpt.py trains; train_gpt.py --eval FILE scores an
artifact. DATA_PATH names the folder of fineweb_train_*.bin and fineweb_val_*.bin, TOKENIZER_PATH the .model file, SEED
another seed.

  golf export run=outputs/2026-01-31/my_run out=submission
  golf export run=multirun/2026-01-31/seeds/0,multirun/2026-01-31/seeds/1 out=submission export.form=packed

Exit code 3: exported, but artifact and packed script are over the run's limit of bytes.
"""


def run(argv: list[str]) -> int:
    """Check the line, then export. Raises ConfigError for a mistake, GolfError for what cannot be exported."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    known = {"run": Word(), **COMMAND.words}
    words, left = own_words(known, [word for word in argv if word != "--trust"])
    if left:
        raise ConfigError(f"{left[0]}: golf export has no such word {did_you_mean(left[0].partition('=')[0], known)}")
    runs = [finished_run(COMMAND, one) for one in str(words["run"] or "").split(",")]
    if not words["out"]:
        raise ConfigError("out must be given: golf export run=DIR out=FOLDER, a folder that does not exist yet")
    from golf.launch.work.export import export

    made, over = export(
        runs, Path(words["out"]).expanduser(), words["export.form"], words["against"], "--trust" in argv
    )
    print(f"readable {len(made.readable.encode()):,} bytes, packed {len(made.packed):,} bytes")
    if over:
        print(f"over the limit by {over:,} bytes: the README marks it invalid")
    print(Path(words["out"]) / "train_gpt.py")
    return 3 if over else 0
