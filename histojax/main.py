"""`python -m histojax.main --config … --workdir …`: `histojax train`; with `--mode=eval`, `histojax eval`."""

import sys
from collections.abc import Sequence

from histojax.cli.main import main as run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Run `histojax train` or `histojax eval` with the other arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    mode = "train"
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in ("--mode", "-mode"):
            mode = value if equals else "".join(words[i + 1 : i + 2])
            del words[i : i + (1 if equals else 2)]
            break
    if mode not in ("train", "eval"):
        sys.exit(f"error: --mode={mode} is neither train nor eval")
    run_command(words if words == ["--version"] else [mode, *words])


if __name__ == "__main__":
    main()
