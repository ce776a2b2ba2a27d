"""torch_cpullm: Hugging Face language models, fast on ordinary CPUs.

torch_cpullm.optimize(model)            in place; model.generate(...) is then several times faster
print(torch_cpullm.explain(model))      what was swapped, and what was not and why
torch_cpullm.restore(model)             the way back
torch_cpullm.save(model, folder)        packed, and torch_cpullm.load(folder) has it again in a second
torch_cpullm.CpuLlmConfig(...)          quantization_config of transformers' from_pretrained: quantise while loading
print(torch_cpullm.info())              the machine, and what costs speed on it
torch_cpullm.tune()                     measure once which attention method is the faster one here
torch_cpullm.distributed.init()         this process is one of several ranks, on cores and memory of its own
"""

from torch_cpullm import distributed, errors
from torch_cpullm.api import explain, load, optimize, restore, save
from torch_cpullm.config import Config
from torch_cpullm.machine import info, tune
from torch_cpullm.pretrained import CpuLlmConfig
from torch_cpullm.version import VERSION as __version__

__all__ = [
    "Config",
    "CpuLlmConfig",
    "__version__",
    "distributed",
    "errors",
    "explain",
    "info",
    "load",
    "optimize",
    "restore",
    "save",
    "tune",
]
