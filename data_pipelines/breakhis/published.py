"""What others report on BreakHis, each number with its protocol: to stand beside ours, never instead of it."""

import dataclasses

_MAGNIFICATIONS = ("40X", "100X", "200X", "400X")


@dataclasses.dataclass(frozen=True)
class Reported:
    """One published number.

    Attributes:
      model: and what it started from, where that matters.
      source: where it stands.
      protocol: in words, as far as the source states it.
      kind: of protocol whose rows it stands beside: image, patient or eva.
      task: `binary` or `subtype`.
      magnification: empty: not one in particular.
      metric: `accuracy` or `balanced_accuracy`.
      value: a share.
      sd: over folds, where it is given.
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


def _each(model: str, source: str, protocol: str, kind: str, values: tuple[float, ...]) -> tuple[Reported, ...]:
    table = zip(_MAGNIFICATIONS, values, strict=True)
    return tuple(Reported(model, source, protocol, kind, "binary", m, "accuracy", value) for m, value in table)


_UNSTATED = "image-level, random or not stated"
_EVA = "eva's four classes, frozen backbone and linear head"
REPORTED = (
    *_each("DALAResNet50, ImageNet weights", "arXiv 2308.13150", _UNSTATED, "image", (0.985, 0.987, 0.979, 0.943)),
    *_each("DenseNet-201-MSD", "its authors", _UNSTATED, "image", (0.994, 0.988, 0.982, 0.994)),
    Reported(
        "CBAM-EfficientNetV2", "its authors", _UNSTATED, "image", "binary", "400X", "accuracy", 0.9901
    ),
    Reported(
        "ResNet50", "Front. Digital Health 2026", "patient-disjoint, five folds", "patient", "binary", "", "accuracy",
        0.9267, 0.0435,
    ),
    *_each("Swin-T", "an audit", "patient-disjoint, 16 held-out patients", "patient", (0.909, 0.923, 0.886, 0.903)),
    *(
        Reported(model, "eva's leaderboard", _EVA, "eva", "subtype", "40X", "balanced_accuracy", value)
        for model, value in (("UNI2-h", 0.859), ("Prov-GigaPath", 0.827), ("Virchow2", 0.821), ("Phikon", 0.717))
    ),
)  # fmt: skip


def beside(kind: str, task: str, magnification: str) -> tuple[Reported, ...]:
    """What is published of the kind of protocol nearest to this one; of case-disjoint splits nothing is.

    Args:
      kind: image, patient, case, folds or eva.
      task: `binary` or `subtype`.
      magnification: of the images; numbers of no magnification in particular are beside every one.
    """
    nearest = {"case": "patient", "folds": "patient", "listed": "eva"}.get(kind, kind)
    return tuple(
        row for row in REPORTED if (row.kind, row.task) == (nearest, task) and row.magnification in ("", magnification)
    )
