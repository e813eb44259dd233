"""`histojax VERB …`: what is done with models besides one training run, which is `python -m histojax.main`."""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence

from histojax.cli import console

_HELP = """histojax VERB …

  models                                     the models: parameters, FLOPs, feature maps, weights
  convert --model NAME --weights FILE --output DIR
                                             another program's weights, by our names (--naming, --num_classes; --dtype;
                                             --config FILE:VARIANT instead of --model: with the options of a config)
  convert --checkpoint RUN --to safetensors --output DIR
                                             a trained model, by names of torchvision or timm (--naming)
  compare --config FILE[:smoke] --workdir D  trains several models under one protocol and prints one table
                                             (--models a,b: only these; --config.a.b=…: fields, as in training)
  predict RUN IMAGE… --output TABLE          probabilities and labels of images, folders, lists, zip archives
  explain RUN IMAGE… --output D              where in images the model saw it: Grad-CAM, DT Grad-CAM, their checks
  export RUN --to FORMAT --output D          stablehlo, onnx, safetensors, or a Hugging Face repository
  audit ROOT [--split split.csv]             duplicates, leaks, conflicts, colours of a dataset or of a split of it
  protocols --config FILE[:smoke] --workdir D
                                             one model under several protocols, k folds each: what a leak is worth
                                             (--protocols, --magnifications, --folds, --transfer, --config.a.b=…)
  report RUN_OR_TABLE… --output D            figures, curves, calibration, errors, comparison, model card: one page
  slide RUN SLIDE… --output D                tiles, maps and tumor-to-stroma ratio of whole slides
  slide train-tiles SLIDE… --output D …      labelled tiles from slides and QuPath's annotations
  slide agreement RUN… --output D            stroma percentage of test images, predicted and by their masks
  doctor [--data_root ROOT]                  devices, processes, versions, disks: is this machine ready?
  bench step|infer|input [--against torch]   how fast it is here, beside PyTorch in turn (--model A B, --profile DIR)
  shardings --config FILE[:variant]          how parameters and optimizer lie on devices (--devices N,
                                             --config.sharding.fsdp=N)

One run: python -m histojax.main --config FILE --workdir D"""


def main() -> None:
    """Runs the verb; whatever a user can mend is told in words, with exit code 1."""
    verbs: dict[str, Callable[[list[str]], None]] = {
        "models": _models,
        "convert": _convert,
        "compare": _compare,
        "predict": _predict,
        "explain": _explain,
        "export": _export,
        "slide": _slide,
        "audit": _audit,
        "protocols": _protocols,
        "report": _report,
        "shardings": _shardings,
        "doctor": _doctor,
        "bench": _bench,
    }
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_HELP)
        return
    if words[0] not in verbs:
        sys.exit(f"error: unknown verb '{words[0]}'; there are {', '.join(verbs)}\n\n{_HELP}")
    verbs[words[0]](words[1:])


def _models(words: list[str]) -> None:
    parser = argparse.ArgumentParser("histojax models", description="The models: how large, what they know, parity.")
    parser.parse_args(words)
    from histojax.cli import model_list

    print(model_list.table())


def _convert(words: list[str]) -> None:
    parser = argparse.ArgumentParser("histojax convert", description="Weights in, by --weights; out, by --checkpoint.")
    parser.add_argument("--model", help="of the file given by --weights: a name that `histojax models` lists")
    parser.add_argument("--config", help="instead of --model: a config file[:variant] that has its name and options")
    parser.add_argument("--weights", help="a file (.safetensors, .npz, .pth, .pt, .bin, .ckpt) or hf:OWNER/NAME[/FILE]")
    parser.add_argument(
        "--num_classes", type=int, default=1000, help="of the model; another number than the file's: no head"
    )
    parser.add_argument("--checkpoint", type=pathlib.Path, help="a work directory or a checkpoint")
    parser.add_argument("--to", choices=["safetensors"], default="safetensors")
    parser.add_argument("--naming", default="", help="of the file that is written")
    parser.add_argument("--dtype", default="float32", help="of the file that is written: float32, float16, bfloat16")
    parser.add_argument(
        "--output", type=pathlib.Path, required=True, help="folder for model.safetensors and config.json"
    )
    given = parser.parse_args(words)
    inward = (given.model is not None) + (given.config is not None) + 2 * (given.weights is not None)
    if (given.checkpoint is not None, inward) not in ((True, 0), (False, 3)):
        parser.error("give either --weights and --model (or --config), or --checkpoint")
    from histojax.training import experiments, pretrained

    console.configure_logging()
    with console.errors_in_words():
        if given.checkpoint is not None:
            print(pretrained.export(given.checkpoint, given.output, given.naming, given.dtype))
            return
        name, options = given.model, {}
        if given.config is not None:
            model = experiments.read(given.config).model
            name, options = model.name, model.options.to_dict()
        print(
            pretrained.rewrite(given.weights, name, given.num_classes, given.output, given.naming, given.dtype, options)
        )


def _predict(words: list[str]) -> None:
    from histojax.cli import predict

    predict.main(words)


def _explain(words: list[str]) -> None:
    from histojax.cli import explain

    explain.main(words)


def _export(words: list[str]) -> None:
    from histojax.cli import export

    export.main(words)


def _audit(words: list[str]) -> None:
    from histojax.cli import audit

    audit.main(words)


def _protocols(words: list[str]) -> None:
    from histojax.cli import protocols

    protocols.main(words)


def _report(words: list[str]) -> None:
    from histojax.cli import report

    report.main(words)


def _shardings(words: list[str]) -> None:
    from histojax.cli import shardings

    shardings.main(words)


def _slide(words: list[str]) -> None:
    from histojax.cli import slide

    slide.main(words)


def _doctor(words: list[str]) -> None:
    from histojax.cli.doctor import command

    command.main(words)


def _bench(words: list[str]) -> None:
    from histojax.cli.bench import command

    command.main(words)


def _compare(words: list[str]) -> None:
    # Defined here: histojax.main has flags of the same names.
    from absl import app, flags
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, "Config file[:variant]; fields: --config.a.b=…", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of the comparison; each model has one of its own in it.")
    flags.DEFINE_list("models", [], "Only these models.")

    def run(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        console.configure_logging()
        with console.errors_in_words():
            _run_comparison()

    app.run(run, argv=["histojax compare", *words], flags_parser=console.parse_flags)


def _run_comparison() -> None:
    from absl import flags
    from ml_collections import config_flags

    from histojax.core.errors import RunError
    from histojax.distributed import processes, runtime
    from histojax.studies import compare

    values = flags.FLAGS
    if values.config is None or values.workdir is None:
        raise RunError("histojax compare needs --config=FILE and --workdir=DIR")
    runtime.prepare(values.config.sharding.cpu_devices)
    flag = values["config"]
    found = compare.configs(
        config_flags.get_config_filename(flag), config_flags.get_override_values(flag), values.models
    )
    text = compare.compare(found, pathlib.Path(values.workdir))
    print("interrupted: the same command goes on" if text is None else text)
    if text is None:
        sys.exit(processes.EXIT_RESUMABLE)


if __name__ == "__main__":
    main()
