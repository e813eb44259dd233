"""Results of others on BreakHis, each with its protocol, for comparison with ours."""

import dataclasses

_MAGNIFICATIONS = ("40X", "100X", "200X", "400X")


@dataclasses.dataclass(frozen=True)
class Reported:
    """One published number.

    Attributes:
      model: the model, and its initial weights if they matter.
      source: the publication.
      protocol: description of the protocol, as far as the source states it.
      kind: the kind of protocol that it is comparable with: image, patient or eva.
      task: `binary` or `subtype`.
      magnification: such as `40X`; empty: not specified.
      metric: `accuracy` or `balanced_accuracy`.
      value: from 0 to 1.
      sd: standard deviation over folds; None: not stated.
    """

    model: str
    source: str
    protocol: str
    kind: str
    task: str
    magnification: str
    metric: str
    value: float
    sd: float | None = None


def _rows(model: str, source: str, protocol: str, kind: str, values: tuple[float, ...]) -> tuple[Reported, ...]:
    table = zip(_MAGNIFICATIONS, values, strict=True)
    return tuple(Reported(model, source, protocol, kind, "binary", m, "accuracy", value) for m, value in table)


_UNSTATED = "image-level, random or not stated"
_EVA = "eva's four classes, frozen backbone and linear head"
REPORTED = (
    *_rows("DALAResNet50, ImageNet weights", "arXiv 2308.13150", _UNSTATED, "image", (0.985, 0.987, 0.979, 0.943)),
    *_rows("DenseNet-201-MSD", "its authors", _UNSTATED, "image", (0.994, 0.988, 0.982, 0.994)),
    Reported(
        "CBAM-EfficientNetV2", "its authors", _UNSTATED, "image", "binary", "400X", "accuracy", 0.9901
    ),
    Reported(
        "ResNet50", "Front. Digital Health 2026", "patient-disjoint, five folds", "patient", "binary", "", "accuracy",
        0.9267, 0.0435,
    ),
    *_rows("Swin-T", "an audit", "patient-disjoint, 16 held-out patients", "patient", (0.909, 0.923, 0.886, 0.903)),
    *(
        Reported(model, "eva's leaderboard", _EVA, "eva", "subtype", "40X", "balanced_accuracy", value)
        for model, value in (("UNI2-h", 0.859), ("Prov-GigaPath", 0.827), ("Virchow2", 0.821), ("Phikon", 0.717))
    ),
)  # fmt: skip


def beside(kind: str, task: str, magnification: str) -> tuple[Reported, ...]:
    """Return the published results whose protocol is nearest to a kind; none are published for case-disjoint splits.

    Args:
      kind: image, patient, case, folds or eva.
      task: `binary` or `subtype`.
      magnification: the images' magnification; results without a magnification match all.
    """
    nearest = {"case": "patient", "folds": "patient", "listed": "eva"}.get(kind, kind)
    return tuple(
        row for row in REPORTED if (row.kind, row.task) == (nearest, task) and row.magnification in ("", magnification)
    )
