"""`histojax.main` that also records which image is at which position of each training batch."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from histojax import main
from histojax.data import pipeline
from histojax.training import loop

FOLDER = "CHAOS_BATCHES"


def recorded_batches(dataset: Any, indices: Any, spec: Any, augmentation: Any, *, start: int = 0) -> Iterator[Any]:
    rows = list(range(spec.batch_size)) if spec.rows is None else list(spec.rows)
    with open(pathlib.Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl", "a") as file:
        stream = pipeline.train_batches(dataset, indices, spec, augmentation, start=start)
        for number, batch in enumerate(stream, start):
            line = {"batch": number, "rows": rows, "index": batch["index"].tolist(), "images": len(indices)}
            print(json.dumps(line), file=file, flush=True)
            yield batch


if __name__ == "__main__":
    loop.train_batches = recorded_batches
    main.main()
