"""What can be said on the command line of scripts/embed.py, and what makes no sense there."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from serving.errors import InvalidRequest
from serving.jobs.schemas import JobOptions
from serving.results import Format, check_format
from serving.sequences import OnTooLong

URL = "http://127.0.0.1:3000"
FORMATS: Mapping[str, Format] = {".npz": "npz", ".h5": "h5", ".hdf5": "h5", ".parquet": "parquet"}
OF_A_FILE = ("model", "per_residue", "dtype", "max_length", "on_too_long", "local")  # options


def parse(arguments: list[str] | None, description: str | None) -> argparse.Namespace:
    """The command line, with `format`, `wanted` (the options of a job) and `key` (of the environment) worked out.

    Raises:
        SystemExit: it makes no sense.
    """
    parser = argparse.ArgumentParser(
        prog="python -m scripts.embed",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("fasta", nargs="?", type=Path, metavar="FILE", help="FASTA, plain or gzip")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help=f"file to make: {', '.join(FORMATS)}")
    parser.add_argument("--model", metavar="NAME", help="name of a model; with --local also name:version")
    parser.add_argument(
        "--per-residue", action="store_true", default=None, help="one vector a residue, not one a protein"
    )
    parser.add_argument("--dtype", choices=("float16", "float32"), help="of the embeddings (default: float16)")
    parser.add_argument("--format", choices=get_args(Format), help="of OUT, where its name does not say it")
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="residues from which on a sequence is too long"
    )
    parser.add_argument(
        "--on-too-long", choices=get_args(OnTooLong), help="what becomes of such a sequence (default: error)"
    )
    parser.add_argument("--url", help=f"of the service (default: {URL})")
    parser.add_argument("--local", action="store_true", default=None, help="compute here, without a service")
    parser.add_argument("--job", metavar="ID", help="a job that is there already")
    parser.add_argument("--cancel", action="store_true", help="cancel the job")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    options = parser.parse_args(arguments)
    if problem := _find_problem(options):
        parser.error(problem)
    options.url = (options.url or URL).rstrip("/")
    options.key = os.environ.get("API_KEY", "").strip()
    if not options.key.isascii() or not options.key.isprintable():
        parser.error("API_KEY holds no key")
    if options.output is not None:
        options.format = options.format or FORMATS[options.output.suffix.lower()]
        asked = {name: getattr(options, name) for name in ("dtype", "max_length", "on_too_long", "format")}
        known = {name: value for name, value in asked.items() if value is not None}
        try:
            options.wanted = JobOptions(pooled=not options.per_residue, **known)
            check_format(options.format, options.wanted.pooled)
        except InvalidRequest as error:
            parser.error(str(error))
        except ValidationError as error:
            parser.error(f"--max-length: {error.errors()[0]['msg']}")
    return options


def _find_problem(options: argparse.Namespace) -> str | None:
    """What makes no sense on the command line."""
    fasta, output, url = options.fasta, options.output, options.url
    if (fasta is None) == (options.job is None):
        return "name a FASTA file, or a job with --job"
    if options.cancel and (fasta is not None or output is not None):
        return "--cancel goes with --job alone"
    if options.job is not None and (given := [name for name in OF_A_FILE if getattr(options, name) is not None]):
        return f"--{given[0].replace('_', '-')} goes with a FASTA file, not with --job"
    if fasta is not None and options.model is None:
        return "--model is missing"
    if fasta is not None and not fasta.is_file():
        return f"{fasta} is no file"
    if options.local and url is not None:
        return "--url does not go with --local"
    if url is not None and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", url):
        return f"--url: {url} does not begin with http:// or https:// and a host"
    return None if options.cancel else _find_problem_of_output(output, options.format, options.force)


def _find_problem_of_output(output: Path | None, format: Format | None, force: bool) -> str | None:
    if output is None:
        return "-o is missing"
    by_name = FORMATS.get(output.suffix.lower())
    if by_name is None and format is None:
        return f"{output}: the name does not say the format; end it in {', '.join(FORMATS)}, or add --format"
    if by_name is not None and format not in (None, by_name):
        return f"{output}: the name says {by_name}, --format says {format}"
    if output.exists() and not force:
        return f"{output} is there already; --force overwrites it"
    if output.is_dir() or not os.access(output.parent, os.W_OK | os.X_OK):
        return f"{output} cannot be written"
    return None
