"""Backbones pretrained on pathology images, fine-tuned on BreakHis.

    python -m histojax.main --config configs/pathology_breakhis.py:lunit_vit_small16 --workdir runs/lunit \\
        --config.model.pretrained=FILE --config.data.root=PATH

The variant is one of `BACKBONES`; `NAME,smoke` shrinks images and epochs to a laptop. An entry holds what the weights
file does not: the sizes of the network and the normalisation that it was trained with. Its last field is the repository
where its authors, or the named copy, publish the weights. `model.pretrained=hf:…` downloads them from there, only on
request; most repositories require you to accept a licence first. The sizes are those of the published model cards; the
tests use files with these names and sizes but random values. `train.freeze_backbone_epochs` trains only the head.
"""

from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from histojax.training import default_config

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LUNIT = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
_HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_HIBOU = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
_BIOPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))


@dataclass(frozen=True)
class Backbone:
    """A pretrained network.

    Attributes:
      model: name of the model.
      options: fields of its config that differ from the defaults.
      normalisation: mean and standard deviation of red, green and blue for values in [0, 1].
      source: repository of the weights on the Hugging Face Hub.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = _IMAGENET
    source: str = ""


_LARGE = {"embed_dim": 1024, "depth": 24, "heads": 16, "layer_scale": 1e-5}
_SMALL = {"embed_dim": 384, "heads": 6}
_HUGE = {"embed_dim": 1280, "depth": 32, "heads": 16, "layer_scale": 1e-5, "mlp": "swiglu", "mlp_ratio": 5.3375}
_GATED_BASE = {"layer_scale": 1e-5, "mlp": "swiglu", "mlp_ratio": 5.33334, "patch": 14, "registers": 4}
_GIANT = {"embed_dim": 1536, "depth": 40, "heads": 24, "layer_scale": 1e-5, "mlp": "swiglu", "mlp_ratio": 5.33334}
_KAIKO = "kaiko_ai_towards_large_pathology_fms"

BACKBONES = {
    # Kang et al. 2023, arXiv 2212.04690: Barlow Twins and DINO on TCGA.
    "lunit_resnet50": Backbone("resnet50", {}, _LUNIT, "1aurent/resnet50.lunit_bt"),
    "lunit_vit_small16": Backbone("vit", _SMALL, _LUNIT, "1aurent/vit_small_patch16_224.lunit_dino"),
    "lunit_vit_small8": Backbone("vit", _SMALL | {"patch": 8}, _LUNIT, "1aurent/vit_small_patch8_224.lunit_dino"),
    # Filiot et al. 2023, medRxiv 2023.07.21.23292757, and 2024, arXiv 2409.09173.
    "phikon": Backbone("vit", {"epsilon": 1e-12}, _IMAGENET, "owkin/phikon"),
    "phikon_v2": Backbone("vit", _LARGE, _IMAGENET, "owkin/phikon-v2"),
    # Chen et al. 2024, Nature Medicine 30.
    "uni": Backbone("vit", _LARGE, _IMAGENET, "MahmoodLab/UNI"),
    "uni2": Backbone("vit", _GIANT | {"depth": 24, "patch": 14, "registers": 8}, _IMAGENET, "MahmoodLab/UNI2-h"),
    # Xu et al. 2024, Nature 630.
    "gigapath": Backbone("vit", _GIANT, _IMAGENET, "prov-gigapath/prov-gigapath"),
    # Saillard et al. 2024, github.com/bioptimus.
    "h_optimus_0": Backbone("vit", _GIANT | {"patch": 14, "registers": 4}, _BIOPTIMUS, "bioptimus/H-optimus-0"),
    "h_optimus_1": Backbone("vit", _GIANT | {"patch": 14, "registers": 4}, _BIOPTIMUS, "bioptimus/H-optimus-1"),
    # Filiot et al. 2025, arXiv 2501.16239: distilled from H-optimus-0.
    "h0_mini": Backbone("vit", _GATED_BASE | {"pool": "token_mean"}, _BIOPTIMUS, "bioptimus/H0-mini"),
    # Vorontsov et al. 2024, Nature Medicine 30, and Zimmermann et al. 2024, arXiv 2408.00738.
    "virchow": Backbone("vit", _HUGE | {"patch": 14, "pool": "token_mean"}, _IMAGENET, "paige-ai/Virchow"),
    "virchow2": Backbone(
        "vit", _HUGE | {"patch": 14, "registers": 4, "pool": "token_mean"}, _IMAGENET, "paige-ai/Virchow2"
    ),
    # Nechaev et al. 2024, arXiv 2406.05074.
    "hibou_b": Backbone("vit", _GATED_BASE, _HIBOU, "histai/hibou-b"),
    "hibou_l": Backbone(
        "vit", _LARGE | {"patch": 14, "registers": 4, "mlp": "swiglu", "mlp_ratio": 5.34375}, _HIBOU, "histai/hibou-L"
    ),
    # Aben et al. 2024, arXiv 2404.15217, and Karasikov et al. 2025, arXiv 2504.05186.
    "kaiko_vits8": Backbone("vit", _SMALL | {"patch": 8}, _HALVES, f"1aurent/vit_small_patch8_224.{_KAIKO}"),
    "kaiko_vits16": Backbone("vit", _SMALL, _HALVES, f"1aurent/vit_small_patch16_224.{_KAIKO}"),
    "kaiko_vitb8": Backbone("vit", {"patch": 8}, _HALVES, f"1aurent/vit_base_patch8_224.{_KAIKO}"),
    "kaiko_vitb16": Backbone("vit", {}, _HALVES, f"1aurent/vit_base_patch16_224.{_KAIKO}"),
    "midnight": Backbone("vit", _GIANT | {"patch": 14, "pool": "token_mean"}, _HALVES, "kaiko-ai/midnight"),
}


def get_config(variant: str = "") -> ConfigDict:
    """Return the experiment; `variant` is empty (lunit_vit_small16), a backbone, `smoke`, or both, as NAME,smoke."""
    parts = [part for part in variant.split(",") if part]
    names = [part for part in parts if part != "smoke"]
    for name in names:
        if name not in BACKBONES:
            raise ValueError(f"unknown variant ':{name}' of this config; choose from smoke, {', '.join(BACKBONES)}")
    if len(names) > 1:
        raise ValueError(f"the variants {', '.join(names)} of this config exclude each other")
    backbone = BACKBONES[names[0] if names else "lunit_vit_small16"]
    config = default_config.base()
    config.model.name = backbone.model
    config.model.options = ConfigDict(backbone.options)
    config.data.mean, config.data.std = backbone.normalisation
    config.data.augment.crop_scale = 0.6
    config.data.augment.colour_jitter = 0.1
    config.data.augment.stain_jitter = 0.05
    config.loss.class_weights = "inverse"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.clip_norm = 1.0
    if "smoke" in parts:
        config.data.synthetic = True
        config.data.image_size = 56 if backbone.options.get("patch") == 14 else 64
        config.train.batch_size = 16
        config.train.epochs = 1
        config.sharding.cpu_devices = 1
        config.evaluation.resamples = 500
    return config
