"""The command tree: help texts, suggestions, exit codes, and overrides on their way to an experiment."""

import argparse
import re
import sys

import pytest

from data_pipelines.audit import hashes
from histojax import __version__
from histojax import main as door
from histojax.cli import audit, train
from histojax.cli.main import GROUPS, RootParser, parse
from histojax.cli.parser import CommandParser, split_overrides
from histojax.training import default_config, experiments
from tests.helpers.command import histojax
from tests.helpers.programs import run

VERBS = RootParser().verbs
RUN = ["--config=ldcsf_liver", "--workdir=x"]


def test_the_list_of_commands_is_generated() -> None:
    done = histojax("--help")
    assert done.returncode == 0
    assert histojax() == histojax("help") == done
    lines = done.stdout.splitlines()
    for title in GROUPS:
        assert title in lines
    for name, parser in VERBS.items():
        assert any(line.startswith(f"  {name} ") and line.endswith(parser.summary) for line in lines), name
    assert {"train", "eval", "slide agreement", "slide outcome", "bench", "models"} <= VERBS.keys()
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", VERBS)
def test_every_command_has_help_with_an_example_that_parses(name: str) -> None:
    done = histojax(*name.split(), "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: histojax {name} ")
    examples = re.findall(rf"^  (histojax {name}\b.*)$", done.stdout, re.MULTILINE)
    assert examples
    for example in examples:
        args = parse(example.replace("'", "").split()[1:])
        assert args.run
        if name in ("train", "crossval", "compare", "protocols"):
            default_config.check_data_root(experiments.read(args.config, args.overrides))


def test_version() -> None:
    assert histojax("--version").stdout == f"histojax {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian' (did you mean 'train'?)"),
        (["slide", "agrement"], "the following arguments are required"),  # a RUN of that name
        (["train", "--confg=x", "--workdir=x"], "unknown flag --confg (did you mean '--config'?)"),
        (["predict", "a", "b", "--ouput", "x"], "unknown flag --ouput (did you mean '--output'?)"),
        (["predict", "a", "b", "--config.train.epochs=1"], "histojax predict reads no config"),
        (["train", "--config=x"], "the following arguments are required: --workdir"),
        (["train", "--config=x", "--workdir=x", "y"], "unexpected arguments: y"),
        (["train", "--conf=x", "--workdir=x"], "unknown flag --conf "),  # no abbreviations
        (["predict", "a", "b", "--threads=0"], "argument --threads: 0 is not at least 1"),
        (["bench", "stp"], "argument WORK: 'stp' is not one of step, infer, input, slide (did you mean 'step'?)"),
        (["bench", "step", "--options", "["], "argument --options: '[' is not a JSON object such as"),
        (["predict", "a", "b", "--tta=dihedra"], "not one of none, dihedral (did you mean 'dihedral'?)"),
        (["--verison"], "unknown flag --verison (did you mean '--version'?)"),
        (["eval", "runs/x"], "unexpected arguments: runs/x; histojax eval takes only flags"),
        (["predict", "--workdir=a", "b"], "give the run without a flag, as the first argument of histojax predict"),
        (["explain", "--checkpoint=a", "b"], "give the run without a flag"),
        # Flags of evaluation, and fields of the config without their group.
        (["train", *RUN, "--data_root=MINE"], "unknown flag --data_root: use --config.data.root"),
        (["train", *RUN, "--magnification=40X"], "unknown flag --magnification: use --config.data.magnification"),
        (["train", *RUN, "--image_size=64"], "unknown flag --image_size: use --config.data.image_size"),
        (["train", *RUN, "--checkpoint=x"], "resume a run by its --workdir; start from the weights of "),
        (["protocols", *RUN, "--epochs=3"], "unknown flag --epochs: use --config.train.epochs"),
        (["compare", *RUN, "--lr=3"], "unknown flag --lr: use --config.optimizer.learning_rate"),
        (["explain", "a", "b", "--output=c", "--seed=-1"], "argument --seed: -1 is not at least 0"),
        (["report", "a", "--seed=-1"], "argument --seed: -1 is not at least 0"),
        (["export", "a", "--to=hf", "--output=b", "--tile_um=nan"], "argument --tile_um: nan is not above 0"),
        (["bench", "step", "--round_seconds=0"], "argument --round_seconds: 0 is not above 0"),
        (["bench", "input", "--crop_scale=x"], "argument --crop_scale: 'x' is not a number"),
        (["bench", "input", "--colour_jitter=1"], "argument --colour_jitter: 1 is not in [0, 1)"),
        (["eval", "--workdir=x", "--config=a"], "unknown flag --config: evaluation takes the config of the checkpoint"),
        (["eval", "--workdir=x", "--image_size=-1"], "argument --image_size: -1 is not at least 1"),
        (["protocols", "--config=x", "--workdir=x", "--write_folds=y"], "not allowed with argument"),
        (["audit", "x", "--split=a", "--folds=b"], "not allowed with argument"),
        (["robustness", "x", "--mpp=0"], "argument --mpp: 0 is not above 0"),
        (["robustness", "--features", "x", "--k=3,0"], "argument --k: 0 is not at least 1"),
        (["view", "x", "--port=0"], "argument --port: 0 is not at least 1"),
        (["view", "x", "--port=65536"], "argument --port: 65536 is not a port, 1 to 65535"),
        (["view", "x", "--static=y", "--static_mpp=0"], "argument --static_mpp: 0 is not above 0"),
        (["view", "x", "--output=y"], "unknown flag --output"),
    ],
)
def test_arguments_that_cannot_be_parsed(argv: list[str], message: str) -> None:
    done = histojax(*argv)
    assert done.returncode == 2
    assert message in done.stderr
    assert re.fullmatch(r"error: .*\nSee histojax.* --help\n", done.stderr)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--config=dala_resnet50_breakhi", "--workdir=x"], "(did you mean 'dala_resnet50_breakhis'?)"),
        (["train", "--config=ldcsf_liver:smok", "--workdir=x"], "unknown variant ':smok'"),
        (["train", *RUN], "or train on the built-in synthetic images with --config.data.synthetic=true"),
        (["protocols", *RUN], "data.root is empty: give your images with --config.data.root=PATH, or train on the"),
        (["compare", "--config=baselines_breakhis", "--workdir=x"], "data.root is empty: give your images with"),
        (["predict", "gs://b/run", "x.png"], "gs://b: not an address in a bucket: write gs://BUCKET/PATH"),
        (["train", "--config=ldcsf_liver", "--workdir=x", "--config.data.magnificatoin=40X"], "'magnification'"),
        (["train", *RUN, "--config.optimizer.lr=0.1"], "optimizer has no field 'lr' (did you mean 'learning_rate'?)"),
        (["train", *RUN, "--config.train.epoch=3"], "train has no field 'epoch' (did you mean 'epochs'?)"),
        (["train", *RUN, "--config.model.options="], "--config.model.options=: the value must be a mapping, such as"),
        (["train", "--config=configs/ldcsf_live.py", "--workdir=x"], "no such config file (did you mean 'ldcsf_liver."),
        (
            ["explain", "a", "b", "--output=c", "--method=grad_cam", "--min_part=0"],
            "effect only with --method dt_",
        ),
        (["explain", "a", "b", "--output=c", "--seed=1"], "--seed: has an effect only with --check"),
        (["convert", "--checkpoint=a", "--output=b", "--num_classes=2"], "--num_classes: has an effect only with --w"),
        (["convert", "--checkpoint=a", "--output=b", "--config.seed=2"], "--config.seed: has an effect only with --co"),
        (["protocols", "--config=ldcsf_liver", "--write_folds=a", "--transfer"], "--transfer: has an effect only with"),
        (["bench", "step", "--peer_compile"], "--peer_compile: has an effect only with --against"),
        (["bench", "step", "--memory_gib=3"], "--memory_gib: has an effect only with --find_batch"),
        (["bench", "step", "--model", "resnet50", "resnet5"], "unknown model 'resnet5' (did you mean 'resnet50'?)"),
        (
            ["eval", "--checkpoint=s3://b", "--workdir=x"],
            "s3://b: not an address in a bucket: write gs://BUCKET/PATH or s3://BUCKET/PATH",
        ),
        (["eval"], "evaluation needs --workdir=DIR of a run, or --checkpoint=PATH"),
        (["eval", "--workdir=x", "--config.train.epochs=1"], "--config.train.epochs belongs to the trained model; "),
        (["convert", "--output=x"], "give either --weights with --model (or --config), or --checkpoint"),
        (["convert", "--output=x", "--weights=a", "--checkpoint=b"], "give either"),
        (["convert", "--output=x", "--weights=a", "--model=b", "--config=c"], "give either"),
        (["view", "x", "--static_gb=1"], "--static_gb: has an effect only with --static"),
        (["view", "/nowhere"], "/nowhere: nothing that can be viewed; give the --output of"),
        (["predict", "a", "/nowhere.png"], "/nowhere.png: no such file or folder"),
    ],
)
def test_user_errors_exit_with_code_1_and_a_message(argv: list[str], message: str) -> None:
    done = histojax(*argv)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("argv", "rest", "overrides"),
    [
        (["--config.a.b=1", "x"], ["x"], [("a.b", "1")]),
        (["--config.a.b", "1", "x"], ["x"], [("a.b", "1")]),
        (["--config.a.b", "-1"], [], [("a.b", "-1")]),
        (["--config.a", "--config.b=", "--config", "f"], ["--config", "f"], [("a", None), ("b", "")]),
        (["--noconfig.a", "x"], ["x"], [("a", "false")]),
        (["-config.a=(1, 2)"], [], [("a", "(1, 2)")]),
        (["--config.a=b=c\nd"], [], [("a", "b=c\nd")]),
        (["--config=f", "--configs.a=1"], ["--config=f", "--configs.a=1"], []),
    ],
)
def test_overrides_are_taken_out_of_the_arguments(
    argv: list[str], rest: list[str], overrides: list[tuple[str, str | None]]
) -> None:
    assert split_overrides(argv) == (rest, overrides)


def test_overrides_reach_the_command_in_order() -> None:
    args = parse(["train", "--config.seed=1", "--config=a:b", "--workdir", "w", "--config.seed", "2", "--profile"])
    assert (args.config, args.workdir, args.profile) == ("a:b", "w", True)
    assert args.overrides == [("seed", "1"), ("seed", "2")]


@pytest.mark.parametrize(
    ("argv", "verb"),
    [
        (["--config=a", "--workdir=b"], "train"),
        (["--mode=train", "--config=a", "--workdir=b"], "train"),
        (["--mode=eval", "--workdir=b"], "eval"),
        (["--workdir=b", "--mode", "eval", "--image_size=32"], "eval"),
        (["--config=a", "--workdir=b", "--coordinator=h:1", "--num_processes=2", "--process_id=0"], "train"),
    ],
)
def test_the_door_of_earlier_commands(argv: list[str], verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr(door, "run_command", lambda words: seen.append(parse(words)))
    door.main(argv)
    assert seen[0].run is VERBS[verb].get_default("run")
    assert seen[0].workdir == "b"


def test_the_door_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        door.main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"histojax {__version__}\n")


def test_another_mode_is_refused() -> None:
    with pytest.raises(SystemExit, match="--mode=test is neither train nor eval"):
        door.main(["--mode=test", "--workdir=b"])


def test_an_interrupted_command_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("histojax.inference.predict.images.find", interrupted)
    done = histojax("predict", "run", "image.png")
    assert (done.returncode, done.stderr) == (130, "interrupted: rerun the same command to resume\n")


def test_numbers_in_help_texts_are_those_of_the_code() -> None:
    assert (audit.HASH_BITS, audit.MAX_DISTANCE) == (hashes.BITS, hashes.MAX_DISTANCE)


def test_shared_flags_are_defined_once() -> None:
    """A flag with one meaning has one kind of value, whatever the command."""
    kinds: dict[str, set[str]] = {}
    for name, parser in VERBS.items():
        for line in parser.format_help().splitlines():
            if match := re.match(r"  (--(?:config|output|seed|threads|redo|json|batch_size))( \S+)?(?:  .*)?$", line):
                kinds.setdefault(match[1], set()).add(f"{match[2]}")
                assert name
    assert kinds.keys() == {"--config", "--output", "--seed", "--threads", "--redo", "--json", "--batch_size"}
    assert all(len(values) == 1 for values in kinds.values()), kinds


def test_help_and_user_errors_need_neither_jax_nor_numpy() -> None:
    program = (
        "import sys\nfrom histojax.cli.main import RootParser, parse\nRootParser().format_help()\n"
        "parse(['predict', 'a', 'b'])\n"
        "print(sorted({'jax', 'numpy', 'cv2', 'pandas', 'ml_collections', 'tqdm'} & sys.modules.keys()))"
    )
    assert run([sys.executable, "-c", program]).stdout == "[]\n"


@pytest.mark.parametrize("module", ["histojax", "histojax.main"])
def test_the_programs_themselves(module: str) -> None:
    done = run([sys.executable, "-m", module, "--help"])
    assert done.returncode == 0
    assert done.stdout.startswith("usage: histojax COMMAND" if module == "histojax" else "usage: histojax train")


def test_flags_tell_the_processes_of_one_run_apart() -> None:
    parser = argparse.ArgumentParser()
    train.add_process_flags(parser)
    assert vars(parser.parse_args([])) == {"coordinator": "", "num_processes": "", "process_id": ""}
    assert isinstance(VERBS["train"], CommandParser)
