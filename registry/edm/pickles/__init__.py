"""Reads the pickles of EDM, PFGM++, SiD and IPFM without executing anything from them.

The formats are network-snapshot-*.pkl (pickle protocols 2 to 5) and training-state-*.pt (torch's zip files and its older
streams). A file passes through three stages:

1. Trace. The instructions of the pickle are read as data. Only instructions that a pickler writes are allowed, and nothing
   may be larger than the file. Byte strings are cut out, so what remains is small, and tensors stay on disk.
2. Unpickle. Python's unpickler loads what remains. Every allowed global appears to it as a `Call`, which only notes what the
   file asks for. Nothing is called, not even our own functions. All other globals are refused by name.
3. Rebuild. Plain values, tensors and records are made from the notes, and every argument is checked. Each tensor is read
   from the file straight into its place.

Read the files in this order, each from top to bottom:

refusals.py      the error `PickleError`, and the limits
allowlist.py     THE ALLOW-LIST: every global that a file may refer to, and why
instructions.py  stage 1: the pickle instructions, which of them are allowed, and reading them from a file
stack.py         stage 1: what is known of the values, and which uses of them would run something
trace.py         stage 1: follows the instructions without executing them
notes.py         stage 2: `Call`, the note of what a file asks for
unpickle.py      stage 2: Python's unpickler, which meets only notes and plain values
torch_files.py   torch's two containers: zip files and older streams
file_data.py     stage 3: byte strings and storages, each read once
records.py       stage 3: `Persistent` and `Inert`, the results that stand for modules
rebuild.py       stage 3: turns notes into values
tensors.py       stage 3: the values that torch's globals stand for
arrays.py        stage 3: the values that numpy's globals stand for
handlers.py      stage 3: which function handles which global of the allow-list
contents.py      `read_pickle`: all three stages, for a whole file
globals_in.py    `list_globals`: what a file refers to, by stage 1 alone
disguise.py      `disguised_program`: whether a file of another format is a pickle, too
edm_network.py   `network_of`: a network of ours from a record
"""

from __future__ import annotations

from registry.edm.pickles.allowlist import PARAMETER, RUNS_SOURCE, SIZE, TENSOR, UNTYPED, Global
from registry.edm.pickles.contents import read_pickle
from registry.edm.pickles.disguise import begins_a_pickle, disguised_program
from registry.edm.pickles.edm_network import NEWEST_VERSION, network_of
from registry.edm.pickles.globals_in import list_globals
from registry.edm.pickles.records import Inert, Persistent
from registry.edm.pickles.refusals import MAX_PARTS, PickleError, blaming
from registry.edm.pickles.stack import UNKNOWN
from registry.edm.pickles.tensors import take_too_much

__all__ = [
    "MAX_PARTS",
    "NEWEST_VERSION",
    "PARAMETER",
    "RUNS_SOURCE",
    "SIZE",
    "TENSOR",
    "UNKNOWN",
    "UNTYPED",
    "Global",
    "Inert",
    "Persistent",
    "PickleError",
    "begins_a_pickle",
    "blaming",
    "disguised_program",
    "list_globals",
    "network_of",
    "read_pickle",
    "take_too_much",
]
