"""Embeds many proteins on every device of a machine or of a Ray cluster, into a folder of shards.

    python -m scripts.embed_bulk proteins.fasta.gz embeddings/ --model esm2_t33_650M
    python -m scripts.embed_bulk 's3://bucket/*.parquet' s3://bucket/out --model esm2_t33_650M --address auto
    python -m scripts.embed_bulk proteins.fasta.gz embeddings/ --model esm2_t33_650M --resume

INPUT: FASTA (plain or gzip) or Parquet with columns id and sequence; files, globs, any place that fsspec knows.
Without --address, Ray runs in this process's own children and ends with it.

OUTPUT gets shards, manifest.jsonl, errors.parquet (sequences that could not be embedded), summary.json, plot.png.
After a crash or Ctrl-C, --resume computes what is missing. docs/bulk.md says more.

Exit status: 0 if every block has its shard, 1 if not, 2 for a command that makes no sense, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any, get_args

from bulk.cluster import connect, disconnect
from bulk.driver import Driver, RunFailed
from bulk.driver import Progress as Done
from bulk.folder import Folder
from bulk.manifest import Manifest
from bulk.plan import WINDOW_SHARDS, blocks, shard_tokens
from bulk.pool import Pool, PoolSize, StartFailed
from bulk.report import summarise, write_reports
from bulk.source import expand, read
from bulk.survey import Survey, survey
from bulk.twins import find_twins
from bulk.workload import Form, Worker, Workload
from models.catalogue import UnknownModel
from models.configs import CheckpointError
from models.cores import usable_cores
from scripts.embedding.engines import StoredModel, resolve
from scripts.embedding.progress import Progress
from serving.errors import ServiceError
from serving.runners import UNTRAINED_WARNING

INTERRUPTED = 130
WINDOW_SEQUENCES = 100_000
NUM_TOLD = 8  # actors whose utilisation has room on a line
KNOWN = (ServiceError, UnknownModel, CheckpointError, RunFailed, StartFailed, OSError, ConnectionError)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        run(options)
    except KeyboardInterrupt:
        print("stopped; --resume goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except KNOWN as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.embed_bulk",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", nargs="+", metavar="INPUT", help="FASTA or Parquet; files, globs, URLs")
    parser.add_argument("output", metavar="OUTPUT", help="a folder or URL")
    parser.add_argument("--model", required=True, metavar="NAME", help="name or name:version, of the model store")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--pooled", action="store_true", help="one vector a protein (the default)")
    kind.add_argument("--per-residue", action="store_true", help="one vector a residue")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the embeddings")
    parser.add_argument("--format", choices=get_args(Form), default="parquet", help="of the shards")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="of products"
    )
    parser.add_argument("--max-length", type=int, default=5000, metavar="N", help="residues at most (5000)")
    parser.add_argument("--truncate", action="store_true", help="cut longer sequences off, instead of an error")
    parser.add_argument("--resume", action="store_true", help="go on with what OUTPUT has")
    parser.add_argument("--address", metavar="auto|ray://...", help="of a Ray cluster")
    parser.add_argument(
        "--actors", type=_range, metavar="MIN[:MAX]", help="default: one for each core, or 1:64 on a cluster"
    )
    parser.add_argument("--cores", type=int, default=1, metavar="N", help="of an actor without a GPU (1)")
    parser.add_argument("--gpu", action="store_true", help="each actor has one GPU")
    parser.add_argument("--shard-tokens", type=int, metavar="N", help="cost of a shard at most")
    parser.add_argument("--cache-url", metavar="redis://...", help="the service's Redis, asked before computing")
    parser.add_argument("--price-per-hour", type=float, metavar="X", help="of an actor, for the estimate of costs")
    parser.add_argument("--null", action="store_true", help="no arithmetic: measures everything else")
    return parser.parse_args(arguments)


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    least, most = int(first), int(last or first)
    if not 1 <= least <= most:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more, the second no less than the first")
    return least, most


def run(options: argparse.Namespace) -> dict[str, Any]:
    """A whole run. Returns the summary.

    Raises:
        any of KNOWN.
    """
    stored, places = resolve(options.model), expand(options.input)
    if not stored.is_trained:
        print(f"{stored.tag}: {UNTRAINED_WARNING}", file=sys.stderr)
    started = time.monotonic()
    with Progress() as progress:
        progress.note(f"reading {len(places)} file(s)")
        found = survey(read(places), stored.model.dim)
        progress.note(f"{found.num_sequences} sequences, {found.num_residues} residues, longest {found.longest}")
        workload = workload_of(options, stored, found)
        folder = Folder(options.output)
        folder.make()
        about = {**workload.describe(), "engine": _engine(options), "input": found.fingerprint}
        manifest = Manifest(folder, about, options.resume)
        folder.remove_unfinished()
        done = _compute(options, stored, workload, manifest, found, places, progress)
        summary = summarise(manifest, found, done, time.monotonic() - started, options.price_per_hour)
        write_reports(folder, manifest, found, done, summary)
    for name, value in summary.items():
        print(f"{name:28} {value}")
    return summary


def workload_of(options: argparse.Namespace, stored: StoredModel, found: Survey) -> Workload:
    row_bytes = stored.model.dim * (2 if options.dtype == "float16" else 4)
    pooled = not options.per_residue
    tokens = options.shard_tokens or shard_tokens(found, pooled, row_bytes)
    return Workload(
        model=stored.model.name,
        tag=stored.tag,
        is_trained=stored.is_trained,
        pooled=pooled,
        dtype=options.dtype,
        form=options.format,
        precision=options.precision,
        min_length=1,
        max_length=options.max_length,
        truncate=options.truncate,
        shard_tokens=tokens,
        window_residues=WINDOW_SHARDS * tokens,
        window_sequences=WINDOW_SEQUENCES,
    )


def _engine(options: argparse.Namespace) -> str:
    return "null" if options.null else "packed"


def _compute(
    options: argparse.Namespace,
    stored: StoredModel,
    workload: Workload,
    manifest: Manifest,
    found: Survey,
    places: Sequence[str],
    progress: Progress,
) -> Done:
    size = _size(options)
    worker = Worker(
        folder=stored.folder,
        device="cuda" if options.gpu else "cpu",
        num_threads=options.cores,
        cache_url=options.cache_url,
        engine="null" if options.null else "packed",
    )

    def show(done: Done) -> None:
        busy = sorted(done.utilisation.items())
        told = " ".join(f"{share:.0%}" for _, share in busy[:NUM_TOLD]) + (" ..." if len(busy) > NUM_TOLD else "")
        progress.show(f"{len(busy)} actors, busy {told}", done.num_residues, found.num_residues, "residues")

    twins = find_twins(read(places), found)
    connect(options.address, num_cpus=max(1, size.most * options.cores))
    pool = Pool(workload, worker, options.output, size)
    try:
        planned = blocks(read(places), workload, found.repeated, twins)
        return Driver(planned, manifest, pool, show).run()
    finally:
        pool.close()
        manifest.close()
        disconnect()


def _size(options: argparse.Namespace) -> PoolSize:
    if options.actors is None:
        least, most = (1, 64) if options.address else (max(1, usable_cores() // options.cores),) * 2
    else:
        least, most = options.actors
    return PoolSize(least, most, cores=options.cores, gpus=1 if options.gpu else 0)


if __name__ == "__main__":
    main()
