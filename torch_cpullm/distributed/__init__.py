"""Ranks: processes that compute one model together, as torchrun or `torch-cpullm launch --sockets` starts them."""

from torch_cpullm.distributed.binding import Binding
from torch_cpullm.distributed.start import init, shutdown, world
from torch_cpullm.distributed.world import World

__all__ = ["Binding", "World", "init", "shutdown", "world"]
