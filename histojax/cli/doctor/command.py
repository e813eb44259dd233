"""`histojax doctor`: is this machine ready, and what is to be done where it is not."""

import argparse
import dataclasses
import json
import os
import sys

from histojax.cli import console
from histojax.core.errors import RunError


def main(words: list[str]) -> None:
    """Runs `histojax doctor` with these words; exit code 1 if something will not work."""
    parser = argparse.ArgumentParser(
        "histojax doctor",
        description="Devices, the way between them and between processes, memory, versions, disks, images, compiled "
        "programs, limits: what is wrong, in words, and what to do. Exit code 1 if something fails. Of several "
        "processes (launch/local.sh -n 2 --module histojax -- doctor) each speaks for itself.",
    )
    parser.add_argument("--workdir", default=".", help="where runs will be written; default: here")
    parser.add_argument("--data_root", default="", help="what data.root will be: is it there, what does it look like?")
    parser.add_argument("--json", action="store_true", help="prints one JSON object instead of lines")
    given = parser.parse_args(words)

    console.configure_logging()
    with console.errors_in_words():
        level, text = _examine(given)
    print(text, flush=True)
    if level == "fail":
        sys.exit(1)


def _examine(given: argparse.Namespace) -> tuple[str, str]:
    """The worst level, and what to print."""
    # Behind the words: --help needs no jax.
    from histojax.cli.doctor import checks
    from histojax.core.directories import default_directory

    findings = [*checks.versions(), checks.memory(), *checks.limits()]
    findings += [checks.disk("work directory", given.workdir), checks.disk("data directory", str(default_directory()))]
    if given.data_root:
        findings.append(checks.data_root(given.data_root))
    index, count = 0, 1
    try:
        import jax
    except (ImportError, RuntimeError) as error:  # jax refuses a jaxlib that it does not fit
        findings.insert(0, checks.Finding("devices", checks.FAIL, f"jax cannot be imported: {error}"))
    else:
        from histojax.cli.doctor import devices
        from histojax.distributed import processes, runtime

        runtime.prepare()
        cache = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # made at run time
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
    lines.append("all is well" if level == checks.OK else f"{fails} to mend, {warns} to know")
    return level, "\n".join(lines)
