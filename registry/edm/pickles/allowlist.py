"""The allow-list: every global (function or class) that a file may refer to, in groups, with the reason for each group.

A file that refers to any other global is refused by name. An allowed global is never imported or called either: it only
selects a handler of ours (`handlers.py`), which makes the value that the real global would have made. The allow-list of
pickle instructions is in `instructions.py`.

To allow another global, add it to a group here and give it a handler there. The two are compared on import.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Global(NamedTuple):
    """A global that a file refers to. A part is '?' if it can be known only by executing the file."""

    module: str
    name: str


# Networks. Every network of EDM, PFGM++ and SiD is a call of this global, and so is each of its layers. In the original
# loader it executes the Python source that the file carries. This reader takes the attributes and ignores the source.
RUNS_SOURCE = Global("torch_utils.persistence", "_reconstruct_persistent_obj")
"""The original loader executes the Python source that a file with this global carries; this reader ignores the source."""

# Module containers. They hold the layers of a network and are torch's own classes, so they are not persistent objects.
MODULE_CONTAINERS = {Global("torch.nn.modules.container", name) for name in ("ModuleDict", "ModuleList", "Sequential")}

# Dictionaries. Modules keep their parameters and buffers in the first kind. EDM keeps its options in the second.
DICTIONARIES = {Global("collections", "OrderedDict"), Global("dnnlib.util", "EasyDict")}

# Sets. Modules keep the names of their non-persistent buffers in one. Protocol 2 writes Python 2's name of the module.
SETS = {Global("builtins", "set"), Global("__builtin__", "set")}

# Byte strings. Protocol 2 has no instruction for them: it encodes text as latin-1, and calls `bytes()` for an empty one.
ENCODE = Global("_codecs", "encode")
EMPTY_BYTES = {Global("builtins", "bytes"), Global("__builtin__", "bytes")}

# Tensors and parameters. Snapshots keep the numbers in a stream inside the pickle, which LOAD_FROM_BYTES reads.
# Training states keep them outside the pickle.
TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
PARAMETER = Global("torch._utils", "_rebuild_parameter")
PARAMETERS = {PARAMETER, Global("torch._utils", "_rebuild_parameter_with_state")}
LOAD_FROM_BYTES = Global("torch.storage", "_load_from_bytes")

# Shapes and devices, which may be among a module's attributes or an optimizer's settings.
SIZE, DEVICE = Global("torch", "Size"), Global("torch", "device")

# Storage classes. They give the type of the numbers in a storage, and are mentioned but never called.
STORAGES = {
    Global("torch", "DoubleStorage"): torch.float64,
    Global("torch", "FloatStorage"): torch.float32,
    Global("torch", "HalfStorage"): torch.float16,
    Global("torch", "BFloat16Storage"): torch.bfloat16,
    Global("torch", "LongStorage"): torch.int64,
    Global("torch", "IntStorage"): torch.int32,
    Global("torch", "ShortStorage"): torch.int16,
    Global("torch", "CharStorage"): torch.int8,
    Global("torch", "ByteStorage"): torch.uint8,
    Global("torch", "BoolStorage"): torch.bool,
}

# The storage of numbers of any type, which tensors of newer types have. No file of EDM's has one, so it is not allowed.
UNTYPED = Global("torch.storage", "UntypedStorage")

# Types of numbers (torch.float32 and so on) as plain values. They are mentioned but never called.
DTYPES = {Global("torch", str(dtype).removeprefix("torch.")): dtype for dtype in STORAGES.values()}

# Numpy's scalars and arrays. They are among the attributes of EDM's layers, for example `skip_scale`, which is np.sqrt(0.5).
# Numpy 2 has renamed its module `core`.
_CORES = ("numpy.core", "numpy._core")
NUMPY_SCALARS = {Global(f"{core}.multiarray", "scalar") for core in _CORES}
NUMPY_ARRAYS = {Global(f"{core}.multiarray", "_reconstruct") for core in _CORES}
NUMPY_BUFFERS = {Global(f"{core}.numeric", "_frombuffer") for core in _CORES}

# Parts of numpy's scalars and arrays, which are not values of their own.
NUMPY_DTYPE, NUMPY_NDARRAY = Global("numpy", "dtype"), Global("numpy", "ndarray")

ALLOWED_GLOBALS = frozenset(
    {
        RUNS_SOURCE,
        *MODULE_CONTAINERS,
        *DICTIONARIES,
        *SETS,
        ENCODE,
        *EMPTY_BYTES,
        TENSOR,
        *PARAMETERS,
        LOAD_FROM_BYTES,
        SIZE,
        DEVICE,
        *STORAGES,
        *DTYPES,
        *NUMPY_SCALARS,
        *NUMPY_ARRAYS,
        *NUMPY_BUFFERS,
        NUMPY_DTYPE,
        NUMPY_NDARRAY,
    }
)
"""Everything that a file may refer to. All other globals are refused."""
