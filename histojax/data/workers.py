"""Worker processes that make whole batches and pass them to this process through shared memory."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading

import grain

from data_pipelines.errors import DataError
from histojax.data.compat import ensure_flags_parsed

SHARED_MEMORY = "/dev/shm"


def iterate(batches: grain.MapDataset, count: int, batch_bytes: int) -> grain.DatasetIterator:
    """Iterate over batches in order; batch n is made by worker n modulo `count`, so `count` changes no batch.

    Workers make batches rather than images, because this process needs as long per item as a worker needs per image:
    with single images it would be limited to 2,000 images/s whatever the number of workers; with batches, to 40,000.

    Args:
      batches: random access to batches; indexing makes a batch.
      count: number of workers.
      batch_bytes: size of a batch in bytes.

    Raises:
      DataError: shared memory is too small.
    """
    ensure_flags_parsed()
    _check_shared_memory(count, batch_bytes)
    read_options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    options = grain.MultiprocessingOptions(num_workers=count, per_worker_buffer_size=1)
    return iter(batches.to_iter_dataset(read_options).mp_prefetch(options, worker_init_fn=_begin))


def _check_shared_memory(count: int, batch_bytes: int) -> None:
    """Refuse settings that would end this process with SIGBUS, without a message, when the file system is full."""
    needed = (2 * count + 2) * batch_bytes  # each worker makes one batch and has one ready; this process holds two
    with contextlib.suppress(OSError):  # the folder does not exist on other operating systems
        free = shutil.disk_usage(SHARED_MEMORY).free
        if free < needed:
            raise DataError(
                f"data.workers={count} with batches of {batch_bytes / 1e6:.1f} MB need {needed / 1e6:.0f} MB of shared "
                f"memory, but {SHARED_MEMORY} has {free / 1e6:.0f} MB free: use fewer workers or, in a container, "
                "docker run --shm-size=8g"
            )


def _begin(worker: int, count: int) -> None:
    """Set up a worker so that only its parent ends it, also by dying.

    A scheduler's signal and Ctrl-C reach all processes, but the parent still needs batches until it has saved.
    """
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, signal.SIG_IGN)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_exit_with, args=(parent.sentinel,), daemon=True).start()


def _exit_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
