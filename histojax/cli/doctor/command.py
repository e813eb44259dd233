"""`histojax doctor`: check whether this machine is ready, and say how to fix problems."""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb
from histojax.core.errors import RunError
from histojax.core.files import atomic_write
from histojax.core.text_table import text_table

if TYPE_CHECKING:
    from histojax.cli.doctor.checks import Finding
    from histojax.cli.parser import Subparsers


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax doctor`."""
    parser = add_verb(
        subparsers,
        "doctor",
        run,
        summary="check devices, processes, versions, memory and disks",
        description="Checks devices, communication between devices and processes, memory, versions, disks, images, the "
        "compile cache and limits, and says how to fix what is wrong. Exit code 1 if a check fails. With several "
        "processes (launch/local.sh -n 2 --module histojax -- doctor) each one reports separately.",
        examples=["histojax doctor --data_root BreaKHis_v1 --workdir runs"],
    )
    flags.add_workdir(parser, "folder where runs will be written (default: the current one)", default=".")
    parser.add_argument("--data_root", metavar="PATH", default="", help="images to check, as data.root of a run")
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        default="",
        help="also check the way from this host to process 0 of a run, and the address that this host would advertise",
    )
    flags.add_json(parser, "the checks")
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the result of each check; exit code 1 if one fails."""
    findings, index, count = _examine(args.workdir, args.data_root, args.coordinator)
    from histojax.cli.doctor import checks

    level = max((finding.level for finding in findings), key=(checks.OK, checks.WARN, checks.FAIL).index)
    if args.json:
        listed = [dataclasses.asdict(finding) for finding in findings]
        facts = {"level": level, "process": index, "processes": count, "checks": listed}
        text = json.dumps(facts, indent=1, ensure_ascii=False)
        if args.json != "-":
            with atomic_write(pathlib.Path(args.json)) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
    if args.json != "-":
        text = "\n".join(_lines(findings, level, index, count))
    print(text, flush=True)
    if level == checks.FAIL:
        sys.exit(1)


def _examine(workdir: str, data_root: str, coordinator: str) -> tuple[list["Finding"], int, int]:
    """Run all checks; return their findings, the index of this process and the number of processes."""
    # Imported after parsing: --help needs no jax.
    from histojax.cli.doctor import checks

    findings = [*checks.versions(), checks.memory(), *checks.limits()]
    findings += [checks.disk("work directory", workdir), checks.data_directory()]
    if data_root:
        findings.append(checks.data_root(data_root))
    index, count = 0, 1
    try:
        import jax
    except (ImportError, RuntimeError) as error:  # jax refuses an incompatible jaxlib
        findings.insert(0, checks.Finding("devices", checks.FAIL, f"jax cannot be imported: {error}"))
        return findings, index, count
    from histojax.cli.doctor import devices, network
    from histojax.distributed import processes, runtime

    if coordinator:
        findings.append(network.reach(coordinator))

    runtime.prepare()
    cache = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # defined at run time
    findings.append(checks.compile_cache(cache or ""))
    os.environ.setdefault("HISTOJAX_START_TIMEOUT", "60")  # a training run waits longer
    try:
        processes.initialise()
    except RunError as error:
        findings.insert(0, checks.Finding("processes", checks.FAIL, str(error)))
        return findings, index, count
    with processes.ending_together():
        seen = devices.devices()
        if seen[0].level != checks.FAIL:
            seen += devices.all_reduce()
            index, count = jax.process_index(), jax.process_count()
    return seen + findings, index, count


def _lines(findings: Sequence["Finding"], level: str, index: int, count: int) -> list[str]:
    """Lay the findings out as text."""
    from histojax.cli.doctor import checks

    lines = [f"process {index} of {count}"] if count > 1 else []
    lines += text_table(
        [[f"{finding.level:<4}", finding.check, " ".join(finding.text.split())] for finding in findings]
    )
    failures, warnings = (sum(finding.level == name for finding in findings) for name in (checks.FAIL, checks.WARN))
    lines.append("all checks passed" if level == checks.OK else f"{failures} failures, {warnings} warnings")
    return lines
