"""Processes that make whole batches, which come to this one through shared memory."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading

import grain
from absl import flags

from data_pipelines.errors import DataError

SHARED_MEMORY = "/dev/shm"


def iterate(batches: grain.MapDataset, count: int, batch_bytes: int) -> grain.DatasetIterator:
    """The batches in their order: the n-th is made by the n-th worker, so how many there are changes none of them.

    Batches and not images, because what this process has to do for each would take as long as a worker takes for an
    image: with images, 2,000 a second is the most, whatever the number of workers; with batches, 40,000.

    Args:
      batches: what is made, by position.
      count: workers.
      batch_bytes: of a batch.

    Raises:
      DataError: too little shared memory.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read a flag of its own; notebooks and tests parse none
    _check_shared_memory(count, batch_bytes)
    alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    options = grain.MultiprocessingOptions(num_workers=count, per_worker_buffer_size=1)
    return iter(batches.to_iter_dataset(alone).mp_prefetch(options, worker_init_fn=_begin))


def _check_shared_memory(count: int, batch_bytes: int) -> None:
    """Refuses what would end this process with SIGBUS, without a word, when the file system is full."""
    needed = (2 * count + 2) * batch_bytes  # each worker has a batch under way and one ready; two are here
    with contextlib.suppress(OSError):  # no such folder: another operating system
        free = shutil.disk_usage(SHARED_MEMORY).free
        if free < needed:
            raise DataError(
                f"data.workers={count} with batches of {batch_bytes / 1e6:.1f} MB need {needed / 1e6:.0f} MB of shared "
                f"memory, and {SHARED_MEMORY} has {free / 1e6:.0f} MB free: use fewer workers or, in a container, "
                "docker run --shm-size=8g"
            )


def _begin(worker: int, count: int) -> None:
    """In a worker: whoever started it ends it, also by dying.

    A scheduler's signal and Ctrl-C go to all processes; that one still needs batches until it has saved.
    """
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, signal.SIG_IGN)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
