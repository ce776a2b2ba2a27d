"""llama.cpp through the C interface of llama-cpp-python: what llama-bench and llama-batched-bench call, no more."""

from __future__ import annotations

import ctypes
import os
import time
import weakref
from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from torch_cpullm.benchmark.engines.engine import Engine, Format, MissingEngineError
from torch_cpullm.benchmark.engines.gguf_file import write_gguf

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from torch_cpullm.benchmark.engines.engine import Ids

# llama.cpp rounds what it grants each sequence to multiples of this.
CELLS = 256
ERROR = 4  # GGML_LOG_LEVEL_ERROR, which the binding does not name
_complaints: deque[str] = deque(maxlen=1)


class LlamaCpp(Engine):
    """llama.cpp with its defaults: mmap, repacked weights, flash attention, an f16 cache, prompts 512 tokens at a time.

    One of the defaults is that each sequence has a cache of its own (kv_unified is off), as in llama-batched-bench.
    With one cache for all, decoding at a depth of 512 was slower by 11 % for 4 sequences and by 21 % for 8 (Q4_0 of
    Llama-3.2-1B, per second of a thread of an AMX machine).
    """

    formats = (Format("BF16", 16), Format("Q8_0", 8), Format("Q4_0", 4), Format("Q4_K_M", 4))

    @classmethod
    def prepare(cls, checkpoint: Path, format: str) -> Path:
        """Write `<checkpoint>.<format>.gguf`; the quantised ones are made of BF16's, which stays for the next."""
        _library()
        target = checkpoint.absolute().with_name(f"{checkpoint.absolute().name}.{format}.gguf")
        if target.exists():
            return target
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            if format == "BF16":
                write_gguf(checkpoint, part)
            else:
                _quantise(cls.prepare(checkpoint, "BF16"), part, format)
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def __init__(self, prepared: Path, format: str, threads: int, batch: int, context: int) -> None:
        self._lib = lib = _library()
        model = lib.llama_model_load_from_file(os.fsencode(prepared), lib.llama_model_default_params())
        if not model:
            raise RuntimeError(f"llama.cpp does not load {prepared}: {_complaint()}")
        weakref.finalize(self, lib.llama_model_free, model)
        self.weight_bytes = lib.llama_model_size(model)
        params = lib.llama_context_default_params()
        params.n_ctx = batch * -(-context // CELLS) * CELLS
        params.n_seq_max = batch
        params.n_threads = params.n_threads_batch = threads
        self._context = lib.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context of {params.n_ctx} tokens: {_complaint()}")
        weakref.finalize(self, lib.llama_free, self._context)  # of two finalizers the later one runs first
        self._memory = lib.llama_get_memory(self._context)
        self._piece = lib.llama_n_batch(self._context)
        self._vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self.reset(batch)

    @property
    def length(self) -> int:
        """Tokens that each sequence holds."""
        return self._length

    def reset(self, batch: int) -> None:
        """Forget all tokens; the cache's bytes stay as they are, since its cells are marked free."""
        self._lib.llama_memory_clear(self._memory, False)
        self._next_B: Ids = np.zeros(batch, np.int64)
        self._length = 0

    def extend(self, ids_BT: Ids) -> Ids:
        """Append a prompt: sequence after sequence, in pieces of n_batch, as llama-batched-bench does."""
        tokens = ids_BT.shape[1]
        token = ids_BT.reshape(-1)
        sequence, step = np.divmod(np.arange(token.size), tokens)
        for start in range(0, token.size, self._piece):
            piece = slice(start, start + self._piece)
            self._advance(token[piece], self._length + step[piece], sequence[piece], step[piece] == tokens - 1)
        self._length += tokens
        return np.copy(self._next_B)

    def decode(self, tokens: int) -> tuple[list[float], Ids]:
        """Generate greedily, the sequences' tokens in one batch."""
        sequence_B = np.arange(self._next_B.size)
        every_B = np.ones(self._next_B.size, np.bool_)
        found_BT = np.empty((self._next_B.size, tokens), np.int64)
        times = []
        for step in range(tokens):
            self._advance(self._next_B, np.full_like(sequence_B, self._length), sequence_B, every_B)
            self._length += 1
            found_BT[:, step] = self._next_B
            times.append(time.perf_counter())
        return times, found_BT

    def crop(self, length: int) -> None:
        """Free the cells of the tokens after the first `length` of each sequence."""
        for sequence in range(self._next_B.size):
            self._lib.llama_memory_seq_rm(self._memory, sequence, length, -1)
        self._length = min(self._length, length)

    def _advance(self, token: Ids, position: Ids, sequence: Ids, last: NDArray[np.bool_]) -> None:
        """Compute a batch of tokens; of those that are the `last` of their sequence, remember which is likely next."""
        sequences = np.arange(self._next_B.size, dtype=np.int32)
        arrays: dict[str, NDArray[Any]] = {
            "token": token.astype(np.int32),
            "pos": position.astype(np.int32),
            "n_seq_id": np.ones(token.size, np.int32),
            "seq_id": (sequences.ctypes.data + sequence * sequences.itemsize).astype(np.uintp),  # int32_t **
            "logits": last.astype(np.int8),
        }
        kinds = dict(self._lib.llama_batch._fields_)
        batch = self._lib.llama_batch(
            n_tokens=token.size, **{name: array.ctypes.data_as(kinds[name]) for name, array in arrays.items()}
        )
        code = self._lib.llama_decode(self._context, batch)
        if code != 0:
            raise RuntimeError(f"llama.cpp: llama_decode returned {code} at {self._length} tokens: {_complaint()}")
        for row in np.flatnonzero(last):
            self._next_B[sequence[row]] = self._logits(int(row)).argmax()

    def _logits(self, row: int) -> NDArray[np.float32]:
        address = self._lib.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(address, shape=(self._vocabulary,))


@cache
def _library() -> Any:
    """Load llama.cpp and make it silent; what it says in error is for the exceptions."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:  # the latter: a library that this machine cannot load
        raise MissingEngineError(f"llama.cpp needs: pip install llama-cpp-python ({error})") from error
    llama_cpp.llama_log_set(_listener(llama_cpp.llama_log_callback), None)
    llama_cpp.llama_backend_init()
    return llama_cpp


@cache  # the library keeps its address, so it has to live as long as the process
def _listener(kind: Any) -> Any:
    def listen(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        if level == ERROR:
            _complaints.append(text.decode(errors="replace").strip())

    return kind(listen)


def _complaint() -> str:
    return _complaints[0] if _complaints else "it does not say why"


def _quantise(source: Path, target: Path, format: str) -> None:
    """Do what the command llama-quantize does without options."""
    lib = _library()
    params = lib.llama_model_quantize_default_params()
    params.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{format}")
    if lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)) != 0:
        raise RuntimeError(f"llama.cpp does not quantise {source} to {format}: {_complaint()}")
