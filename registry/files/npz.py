"""Reads a stranger's .npz file: what its arrays take is known before anything is read."""

from __future__ import annotations

import io
import math
import re
import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from registry.core.errors import UserError
from registry.core.text import shown
from registry.core.zips import check_packing, named_directory

MOST_ENTRIES = 1000
HEADERS = {(1, 0): (2, npy.read_array_header_1_0), (2, 0): (4, npy.read_array_header_2_0)}
"""Bytes of a header's length, and what reads it, by version."""
HEADER = re.compile(
    rb"\{'descr': *'[^'\\]{1,40}', *'fortran_order': *(True|False), *'shape': *\((\d{1,18}(, *\d{1,18}){,31})?,? *\),? *\} *\n?"
)
"""What numpy and others write. For anything else numpy goes through the header several times, in Python."""
LONGEST = 10_000


def read_npz(path: Path, source: object, most: int) -> dict[str, np.ndarray]:
    """All arrays of an .npz file that hold numbers or texts, of at most so many bytes together. Raises UserError."""
    try:
        with open(path, "rb") as whole, zipfile.ZipFile(whole) as archive:
            entries = archive.infolist()
            if (archive.start_dir, len(entries)) != named_directory(whole, path.stat().st_size):
                raise ValueError("its end record names another directory")
            if len(entries) > MOST_ENTRIES or sum(entry.file_size for entry in entries) > most:
                raise UserError(f"{source}: its arrays would take more than the {most / 2**20:.0f} MiB that are allowed")
            for entry in entries:
                check_packing(entry)
                with archive.open(entry) as file:
                    width, read = HEADERS[npy.read_magic(file)]
                    size = file.read(width)
                    header = file.read(min(int.from_bytes(size, "little"), LONGEST))
                    if not HEADER.fullmatch(header):
                        raise ValueError("an array of a kind, or with a header, that is not read here")
                    shape, _, dtype = read(io.BytesIO(size + header))
                    if dtype.hasobject or file.tell() + math.prod(shape) * dtype.itemsize != entry.file_size:
                        raise ValueError("an array of another size than its entry")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        raise UserError(f"{source}: no such file") from None
    except UserError:
        raise
    except Exception as error:  # numpy reads headers with Python's own tokenizer and parser, which have many ways to fail
        raise UserError(f"{source}: not an .npz file of numbers, or damaged ({shown(error, 100)})") from None
