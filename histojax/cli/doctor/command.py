"""`histojax doctor`: check whether this machine is ready, and say how to fix what is not."""

import argparse
import dataclasses
import json
import os
import sys

from histojax.cli import console
from histojax.core.errors import RunError


def main(words: list[str]) -> None:
    """Run `histojax doctor`. Exits with code 1 if a check fails."""
    parser = argparse.ArgumentParser(
        "histojax doctor",
        description="Check devices, communication between devices and processes, memory, versions, disks, images, the "
        "compile cache and limits. Say what is wrong and how to fix it. Exit code 1 if a check fails. With several "
        "processes (launch/local.sh -n 2 --module histojax -- doctor) each one reports separately.",
    )
    parser.add_argument("--workdir", default=".", help="folder where runs will be written (default: the current one)")
    parser.add_argument("--data_root", default="", help="images to check, as data.root of a run")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    given = parser.parse_args(words)

    console.configure_logging()
    with console.errors_in_words():
        level, text = _examine(given)
    print(text, flush=True)
    if level == "fail":
        sys.exit(1)


def _examine(given: argparse.Namespace) -> tuple[str, str]:
    """Run all checks; return the worst level and the text to print."""
    # Imported after parsing: --help needs no jax.
    from histojax.cli.doctor import checks
    from histojax.core.directories import default_directory

    findings = [*checks.versions(), checks.memory(), *checks.limits()]
    findings += [checks.disk("work directory", given.workdir), checks.disk("data directory", str(default_directory()))]
    if given.data_root:
        findings.append(checks.data_root(given.data_root))
    index, count = 0, 1
    try:
        import jax
    except (ImportError, RuntimeError) as error:  # jax refuses an incompatible jaxlib
        findings.insert(0, checks.Finding("devices", checks.FAIL, f"jax cannot be imported: {error}"))
    else:
        from histojax.cli.doctor import devices
        from histojax.distributed import processes, runtime

        runtime.prepare()
        cache = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # defined at run time
        findings.append(checks.compile_cache(cache or ""))
        os.environ.setdefault("HISTOJAX_START_TIMEOUT", "60")  # a training run waits longer
        try:
            processes.initialise()
        except RunError as error:
            findings.insert(0, checks.Finding("processes", checks.FAIL, str(error)))
        else:
            with processes.ending_together():
                seen = devices.devices()
                if seen[0].level != checks.FAIL:
                    seen += devices.all_reduce()
                    index, count = jax.process_index(), jax.process_count()
            findings = seen + findings
    level = max((one.level for one in findings), key=(checks.OK, checks.WARN, checks.FAIL).index)
    if given.json:
        listed = [dataclasses.asdict(one) for one in findings]
        whole = {"level": level, "process": index, "processes": count, "checks": listed}
        return level, json.dumps(whole, indent=1, ensure_ascii=False)
    width = max(len(one.check) for one in findings)
    lines = [f"process {index} of {count}"] if count > 1 else []
    lines += [f"{one.level:<4}  {one.check:<{width}}  {' '.join(one.text.split())}" for one in findings]
    fails, warns = (sum(one.level == name for one in findings) for name in (checks.FAIL, checks.WARN))
    lines.append("all checks passed" if level == checks.OK else f"{fails} failures, {warns} warnings")
    return level, "\n".join(lines)
