"""`golf bench`: how fast a recipe trains on this machine, and where its time goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from golf.cli.tables import Column, Table, print_table, size
from golf.common.errors import ConfigError, GolfError, WorkerFailed
from golf.common.files import write_json
from golf.launch.compose.rerun import SWITCH, Command, Word, own_words, read_line
from golf.runs.dotted import last_parts
from golf.runs.tables import shortened

WORDS = {"steps": Word(int, 50), "profile": SWITCH, "compile_times": Word(default="true", choices=("true", "false")),
         "reference": Word(default="true", choices=("true", "false")), "phase": Word(default="0")}  # fmt: skip
COMMAND = Command("bench", ("runtime",), WORDS, one_process=False)

PAGE = """golf bench [--config-dir DIR] [-m] [group=option] [key=value] …
golf bench run=DIR [runtime=OPTION]
golf bench kernels [runtime.device=cuda]

Measures the training steps of a config (every group and key of `golf train`) or of a finished run: the trainer's own
warm-up and steps at the full learning rate, timed by device events. Uses the config's own data where it is prepared,
else random tokens; trains nothing that is kept. `golf bench kernels` times each fused kernel against its twin, and each
installed attention backend against torch's own.

Prints the median step, tokens/s, MFU, memory, the parts of a step by rank, the kernel that served each op, what
compiling costs and when it has paid back, and reference figures of the device (products, copies, attention): figures
of two machines compare once they are divided by these. `mind` says what makes the figure the machine's: a host that
sets the pace, steps that differ, others at work. The last line is the path of bench.json, which holds them all.

  steps=50             measured steps, after 15 that are not
  profile=true         also a trace (chrome://tracing, Perfetto) and a table of the kernels by time, profile.csv
  compile_times=false  leaves out compiling again (with an empty and a filled cache) and the eager steps
  reference=false      leaves out the reference figures
  phase=1              the run as it is in its second phase (0, the beginning); phase=all measures each
  runtime.nproc=8      as many workers as golf train would start
  -m                   several values, one after the other, and a table that compares them

  golf bench recipe=naive_baseline
  golf bench recipe=gradquant_11l runtime.nproc=8 profile=true
  golf bench -m technique/xsa=none,all compile_times=false
"""


def run(argv: list[str]) -> int:
    """Check, then measure. Raises ConfigError for a mistake, before any work starts."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    if argv[:1] == ["kernels"]:
        return kernels(argv[1:])
    jobs, words, folder = read(argv)
    from golf.launch.work.bench import RECORD, make_folder, start

    records: list[dict[str, Any]] = []
    for number, job in enumerate(jobs):
        job.directory = folder / str(number) if len(jobs) > 1 else folder
        if len(jobs) > 1:
            print(f"\n── job {number}: {' '.join(f'{k}={v}' for k, v in job.swept.items())}", flush=True)
        make_folder(job.directory)
        try:
            records.append(start(job, words))
        except WorkerFailed as error:
            if len(jobs) == 1 or error.exit_code == 130:
                raise
            print(f"golf: job {number}: {error}", flush=True)
            records.append({})
            continue
        show(records[-1])
        print(job.directory / RECORD, flush=True)
    if len(jobs) > 1:
        compare([job.swept for job in jobs], records)
        rows = [{"swept": job.swept, **record} for job, record in zip(jobs, records, strict=True)]
        write_json(folder / RECORD, {"jobs": rows})
        print(folder / RECORD)
    return 0 if all(records) else 1


def read(argv: Sequence[str]) -> tuple[list[Any], dict[str, Any], Path]:
    """(jobs, golf bench's own words, the folder for what is found). Raises ConfigError."""
    from golf.launch.compose.line import CommandLine, refuse_unused
    from golf.launch.work.bench import BenchJob, compose_jobs, new_folder

    line = CommandLine.parse(argv, ("run", *WORDS))
    logs = () if "logger=jsonl" in line.overrides else ("logger",)  # that asks for nothing more than there is
    refuse_unused(line, "bench", "sweep", *logs)
    if any(word.startswith("run=") for word in line.overrides):
        request = read_line(COMMAND, argv)
        words = request.words
        jobs = [BenchJob(job.config, request.run.name, [], dict(job.swept)) for job in request.jobs]
        folder = _beside(request.run.folder.evals)
    else:
        words, overrides = own_words(WORDS, line.overrides)
        jobs = compose_jobs(overrides, line.config_dirs, line.multirun)
        folder = new_folder(f"bench_{jobs[0].name}")
    if words["steps"] < 1:
        raise ConfigError(f"steps={words['steps']}: must be at least 1")
    settings = {name: words[name] if name == "steps" else words[name] == "true" for name in WORDS if name != "phase"}
    return [one for job in jobs for one in in_phases(job, words["phase"])], settings, folder


def in_phases(job: Any, phase: str) -> list[Any]:
    """The job as it is in the phase that is asked for, or in each. Raises ConfigError for one that it does not have."""
    last = len(job.config.get("phases") or [])
    if phase == "all":
        return [replace(job, phase=number, swept={**job.swept, "phase": str(number)}) for number in range(last + 1)]
    if not phase.isdecimal() or int(phase) > last:
        choices = "its phases are 0" + (f" (the beginning) to {last}" if last else ", the only one")
        raise ConfigError(f"phase={phase}: {choices}; phase=all measures each")
    return [replace(job, phase=int(phase))]


def _beside(evals: Path) -> Path:
    number = 1
    while (evals / f"bench_{number}").exists():
        number += 1
    return (evals / f"bench_{number}").absolute()


def device_name(record: dict[str, Any]) -> str:
    """What the figures were measured on, for titles."""
    hardware = record["hardware"]
    return f"{record['nproc']} x {hardware['gpus'][0]['name'] if record['device'] == 'cuda' else hardware['cpu']}"


def show(record: dict[str, Any]) -> None:
    """The tables of one job."""
    table = Table(
        Column("what", right=False), Column("", right=False, prose=True),
        title=f"{record['name']}, {device_name(record)}", header=False,
    )  # fmt: skip
    for name, text in summary(record):
        table.add_row(name, text)
    print_table(table)
    phases = list(record["phases_ms"])
    ranks = Table(
        *(Column(name) for name in ("rank", "step", *phases)), Column("peak memory", drop=1),
        title="a step by rank, mean ms",
    )  # fmt: skip
    for one in record["ranks"]:
        ranks.add_row(
            str(one["rank"]), f"{one['step_ms_mean']:.2f}", *(f"{one['phases_ms'][name]:.2f}" for name in phases),
            size(one["peak_memory_bytes"]),
        )  # fmt: skip
    print_table(ranks)
    if record.get("reference"):
        print_table(figures(record["reference"]))
    if record.get("profile"):
        profile = Table(
            Column("kernel", right=False, shorten=True),
            *(Column(name) for name in ("calls", "ms a step", "share")),
            title="kernels by time (all of them: profile.csv)",
        )
        for one in record["profile"][:20]:
            name = shortened(one["name"], 90)
            calls, ms, share = one["calls_per_step"], one["ms_per_step"], one["share"]
            profile.add_row(name, f"{calls:g}", f"{ms:.3f}", f"{share:.1%}")
        print_table(profile)


def summary(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The first table: what a user asks first."""
    mfu = "unknown: no peak is known of this device" if record["mfu"] is None else f"{record['mfu']:.1%}"
    rows = [
        ("ms/step", f"{record['step_ms']:.2f}  (p10 {record['step_ms_p10']:.2f}, p90 {record['step_ms_p90']:.2f}, "
                    f"{record['measured_steps']} steps)"),
        ("tokens/s", f"{record['tokens_per_s']:,.0f}"),
        ("MFU", mfu),
        ("peak memory", size(record["peak_memory_bytes"])),
        ("a step", f"{record['tokens_per_step']:,} tokens, {record['seq_len']:,} a sequence, "
                   f"{record['micro_steps']} micro-steps a worker"),
        ("data", "uniform random tokens" if record["data"] == "random" else record["data"]),
    ]  # fmt: skip
    if record.get("device_busy") is not None:
        rows.append(("device busy", f"{record['device_busy']:.1%} of a step"))
    if record.get("host_ms"):
        parts = ", ".join(f"{phase} {ms:.1f}" for phase, ms in record["host_ms"].items() if ms >= 0.05)
        total = sum(record["host_ms"].values())
        rows.append(("host, ms a step", f"{total:.1f}  ({parts})"))
    if (cost := record.get("checkpoint")) is not None:
        every = (
            "" if cost["share"] is None else f", {cost['share']:.3%} of training with one each {cost['every_s']:.3g} s"
        )
        written = f"{size(cost['bytes'])}, written in {cost['write_s']:.2f} s"
        rows.append(("checkpoint", f"{cost['ms']:.1f} ms{every} ({written})"))
    rows += [("mind" if number == 0 else "", text) for number, text in enumerate(record["doubts"])]
    rows += [(f"kernel: {op}", name) for op, name in record["kernels"].items()]
    rows += [("attention ran", name[:100]) for name in record.get("attention_kernels", [])[:4]]
    costs = record["compile"]
    rows.append(("compiled", costs["scope"] + (", launched as CUDA graphs" if record["cuda_graphs"] else "")))
    if "cold_s" in costs:
        cold, warm = costs["cold_s"], costs["warm_s"]
        rows.append(("compiling", f"{cold:.1f} s with an empty cache, {warm:.1f} s with a filled one"))
        if costs["eager_step_ms"] is not None:
            cold, warm = costs["payback_steps_cold"], costs["payback_steps_warm"]
            told = "never pays back" if cold is None else f"pays back after {cold:,} steps, {warm:,} when cached"
            rows.append(("eager step", f"{costs['eager_step_ms']:.2f} ms: compiling {told}"))
    return rows


def figures(found: dict[str, float | None]) -> Table:
    """The reference figures as a table."""
    units = {"tflops": "TFLOP/s", "tb_s": "TB/s", "gb_s": "GB/s", "ms": "ms"}
    table = Table(
        Column("what", right=False), Column("", right=False), title="reference figures of this device", header=False
    )
    for name, value in found.items():
        ending, unit = next((f"_{ending}", unit) for ending, unit in units.items() if name.endswith(f"_{ending}"))
        told = "not here" if value is None else f"{value:.4g} {unit}"
        table.add_row(name.removesuffix(ending).replace("_", " "), told)
    return table


def compare(swept: Sequence[dict[str, str]], records: Sequence[dict[str, Any]]) -> None:
    """One row a job."""
    keys = list(dict.fromkeys(key for one in swept for key in one))
    table = Table(
        *(Column(head, name=key, right=False, shorten=True) for key, head in zip(keys, last_parts(keys))),
        Column("ms/step"), Column("against the first"), Column("tokens/s", drop=2), Column("MFU", drop=3),
        Column("peak memory", drop=1), title="jobs",
    )  # fmt: skip
    first = next((record["step_ms"] for record in records if record), None)
    for one, record in zip(swept, records, strict=True):
        cells = [one.get(key, "") for key in keys]
        if not record:
            table.add_row(*cells, "failed")
            continue
        ratio = "" if first is None else f"{record['step_ms'] / first - 1:+.1%}"
        mfu = "" if record["mfu"] is None else f"{record['mfu']:.1%}"
        table.add_row(*cells, f"{record['step_ms']:.2f}", ratio, f"{record['tokens_per_s']:,.0f}", mfu,
                      size(record["peak_memory_bytes"]))  # fmt: skip
    print_table(table)


def kernels(argv: Sequence[str]) -> int:
    """Time every fused kernel against its twin, every attention against torch's. Raises ConfigError for a mistake."""
    device_word = Word(default="auto", choices=("auto", "cpu", "cuda"))
    chosen = device_word.default
    for word in argv:
        name, _, text = word.partition("=")
        if name != "runtime.device":
            raise ConfigError(f"{word}: golf bench kernels takes runtime.device=auto, cpu or cuda")
        chosen = device_word.read(name, text)
    import torch

    from golf.common.runtime import Runtime
    from golf.launch.work.bench import RECORD, make_folder, new_folder
    from golf.nn import attend_cases
    from golf.nn import kernels as fused
    from golf.runs import environment
    from golf.train import reference

    device = torch.device(Runtime(device=chosen).device_type)
    make_folder(folder := new_folder("bench_kernels"))
    found = reference.reference(device)
    print_table(figures(found))
    results, rates = [], reference.ceiling(found)
    for case in (*fused.cases(), *attend_cases.cases(device)):
        try:
            results.append(reference.time_case(case, device, rates))
        except (GolfError, RuntimeError) as error:
            print(f"{case.name} {case.shapes}: cannot run here: {str(error).splitlines()[0]}")
    title = f"kernels against their twins; ceiling {rates[0] / 1e12:.3g} TB/s, {rates[1] / 1e12:.4g} TFLOP/s"
    table = Table(
        Column("kernel", right=False), Column("shapes", right=False, shorten=True), Column("ms", drop=2),
        Column("twin ms", drop=1), Column("faster"), Column("TB/s", drop=3), Column("TFLOP/s", drop=4),
        Column("of the ceiling"), title=title,
    )  # fmt: skip
    for one in results:
        table.add_row(one.name, one.shapes, f"{one.kernel_ms:.4f}", f"{one.twin_ms:.4f}", f"{one.speedup:.2f}x",
                      f"{one.tb_s:.2f}", f"{one.tflops:.1f}", f"{one.of_ceiling:.0%}")  # fmt: skip
    print_table(table) if results else print(f"no fused kernel can be timed on this device ({device.type})")
    write_json(folder / RECORD, {
        "schema_version": 1, "device": device.type, "reference": found, "kernels": [one.as_dict() for one in results],
        "versions": environment.versions(), "hardware": environment.hardware().model_dump(mode="json"),
    })  # fmt: skip
    print(folder / RECORD)
    return 0
