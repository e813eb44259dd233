"""Pages of the root and of docs/: commands parse, fields and modules exist, links resolve, messages are ours."""

import ast
import importlib
import pathlib
import posixpath
import re
import shlex
import tomllib

import pytest

from histojax import main as door
from histojax import models
from histojax.cli import compare, crossval, protocols, train
from histojax.cli.main import RootParser, parse
from histojax.training import default_config, experiments
from tests.conftest import ROOT

README = ROOT / "README.md"
SNIPPET = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)
CONFIGURED = {"mkdocs": "mkdocs.yml", ".venv/bin/pre-commit": ".pre-commit-config.yaml"}  # tool -> its file
HISTOJAX = re.compile(r"(\S*/)?(histojax|python -m histojax(\.main)?) ")


def text_of(page: pathlib.Path) -> str:
    """The text of a page, with the files that it includes."""
    return SNIPPET.sub(lambda match: (ROOT / match[1]).read_text(), page.read_text())


FILES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = {page.relative_to(ROOT).as_posix(): text_of(page) for page in FILES}
ALL = "\n".join(PAGES.values())


def lines_of(text: str) -> list[str]:
    """The command lines of all bash blocks, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]


def command_of(line: str) -> str:
    return line.split("&& ")[-1]


LINES = lines_of(ALL)
WRITTEN_BY_INIT = "mine.py"  # by a command of the same page; tests/cli/init_test.py reads such a file
COMMANDS = list(dict.fromkeys(line for line in LINES if HISTOJAX.match(command_of(line))))
OTHERS = [line for line in dict.fromkeys(LINES) if line not in COMMANDS]


def of_main(words: list[str]) -> list[str]:
    """The words behind `histojax` that the arguments of `histojax.main` stand for."""
    argv: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(door, "run_command", argv.extend)
        door.main(words)
    return argv


def arguments(command: str) -> list[str]:
    """The words behind `histojax` that a command stands for."""
    words = shlex.split(command_of(command))
    if words[1:3] == ["-m", "histojax.main"]:
        return of_main(words[3:])
    return words[3:] if words[1:2] == ["-m"] else words[1:]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = parse(arguments(command))
    monkeypatch.chdir(ROOT)  # paths are relative to the root, as the README's reader stands there
    if getattr(args, "config", None) not in (None, WRITTEN_BY_INIT):
        config = experiments.read(args.config, args.overrides)
        if args.run in (train.run, crossval.run, compare.run, protocols.run):
            default_config.check_data_root(config)


def check_launch(arguments: list[str]) -> None:
    """Check a line that starts a script of launch/: the script, and the command that it passes on."""
    script = next(index for index, argument in enumerate(arguments) if argument.startswith("launch/"))
    assert (ROOT / arguments[script]).exists()
    passed = arguments[arguments.index("--") + 1 :] if "--" in arguments else arguments[script + 1 :]
    other_module = {"--module", "HISTOJAX_MODULE=histojax"} & set(arguments)
    parse(passed if other_module else of_main(passed))


@pytest.mark.parametrize("line", OTHERS)
def test_every_other_line_of_a_block_is_of_a_known_kind(line: str) -> None:
    arguments = shlex.split(command_of(line))
    if any(argument.startswith("launch/") for argument in arguments):
        check_launch(arguments)
    elif "pip install" in command_of(line):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\w+", re.findall(r"\[(.*?)\]|$", line)[0])) <= set(extras)
    elif arguments[1:3] == ["-m", "pytest"]:
        assert all((ROOT / argument).exists() for argument in arguments if argument.startswith("tests"))
    elif arguments[1:2] == ["-m"]:
        assert importlib.util.find_spec(arguments[2]) is not None
    elif arguments[0] == "python":
        assert (ROOT / arguments[1]).exists()
    elif arguments[0] in CONFIGURED:
        assert (ROOT / CONFIGURED[arguments[0]]).exists()
    elif arguments[0] == "curl":
        assert any("://127.0.0.1:" in argument for argument in arguments), "a page may only ask a server of its own"
    else:
        assert arguments[0] == "export", "teach this test how to check such a line"


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", ALL, re.DOTALL))
def test_python_code_compiles_and_its_imports_exist(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}")


def test_commands_of_every_kind_are_found() -> None:
    verbs = {arguments(command)[0] for command in COMMANDS}
    assert verbs >= set(RootParser().verbs) - {"slide train-tiles", "slide agreement", "slide outcome"}
    assert sum("histojax.main" in line for line in COMMANDS) == len({line for line in LINES if "histojax.main" in line})


def test_every_field_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:data|model|train|loss|optimizer|sharding|split)\.[a-z0-9_.]+\*?)", ALL))
    named |= set(re.findall(r"--config\.([a-z0-9_.]+)=", ALL))
    named -= {"split.csv", "model.safetensors"}  # files
    assert len(named) > 10
    for name in named:
        node = default_config.base()
        path = name.removesuffix("=").rstrip("*.").split(".")
        if path[:2] == ["model", "options"] and len(path) > 2:  # a model's own
            assert any(path[2] in models.spec(model).options for model in models.names()), name
            path = path[:2]
        for part in ["data", *path] if path[0] == "split" else path:
            assert part in node, name
            node = node[part]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs name them."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page), target)) if target else page
        outside_of_pages = "/" not in page or place.startswith(("docs/images/", "docs/notebooks/"))
        assert place in PAGES or (outside_of_pages and (ROOT / place).exists()), link
        assert not anchor or anchor in anchors(PAGES[place]), link


def test_documented_paths_exist() -> None:
    paths = set(re.findall(r"`((?:histojax|tests|configs|data_pipelines|benchmarks|launch)/[\w./]+\.\w+)`", ALL))
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_error_message_in_the_docs_is_one_of_ours() -> None:
    sources = [path.read_text() for room in ("histojax", "data_pipelines") for path in (ROOT / room).rglob("*.py")]
    literals = re.sub(r'"\s*f?"', "", "\n".join(sources))  # adjacent literals are one message
    messages = re.findall(r"^\| `(.+?)` \|", PAGES["docs/reference/troubleshooting.md"], re.MULTILINE)
    assert len(messages) > 20
    assert not [message for message in messages if message not in literals]


def test_the_commands_are_marked_for_ci() -> None:
    marked = re.findall(r"<!-- command: (\w+) -->\n```bash\n(.*?)```", README.read_text(), re.DOTALL)
    assert [name for name, _ in marked] == ["smoke", "test", "ldcsf"]
    # The first two do all their own set-up; the third continues in what the first has created.
    assert all("python3 -m venv" in command and "pip install" in command for _, command in marked[:2])


def test_the_readme_stays_short() -> None:
    text = README.read_text()
    assert len(text.encode()) <= 9 * 1024
    assert len(text.splitlines()) <= 150
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)  # CI runs each command of a block as one line
    assert not [line for line in prose.splitlines() if len(line) > 120]
