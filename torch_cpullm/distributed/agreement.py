"""All ranks do the same, or are told at once who does not: compared by short digests, ahead of what would hang."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from torch_cpullm.errors import RankError
from torch_cpullm.ops.comm import all_gather, barrier

PATIENCE_S = 600.0
"""What ranks wait for each other between two pieces of work: one may still pack, or read its prompt from somewhere."""


def meet(group: int, timeout_s: float = PATIENCE_S) -> None:
    """Return when all ranks are here, however late; one whose process has ended is told of at once.

    Raises:
        CollectiveError: a rank has ended, or did not come.
    """
    barrier(group, timeout_s)


def require_same(group: int, doing: str, facts: Mapping[str, object]) -> None:
    """Go on when all ranks bring the same facts. All of them have to bring as many.

    Args:
        group: of the ranks.
        doing: what for; begins the sentence.
        facts: what must be the same, by name: tensors by shape, dtype and values, all else by its repr.

    Raises:
        RankError: on all ranks; names what differs, and where.
    """
    own = torch.tensor([_digest(*fact) for fact in facts.items()] or [0])
    # Fewer facts would be another shape, and so already be told of by the transport, in its words.
    of_all = all_gather(torch.tensor([len(facts), int(own.sum())]), group)
    if bool((of_all == of_all[0]).all()):
        return
    if not bool((of_all[:, 0] == of_all[0, 0]).all()):
        raise RankError(f"{doing}: expected the same call on all ranks, got arguments of other names on some")
    of_ranks = all_gather(own, group)
    for name, digests in zip(facts, of_ranks.T, strict=True):
        others = [rank for rank, digest in enumerate(digests.tolist()) if digest != int(digests[0])]
        if others:
            ranks = ", ".join(map(str, others))
            raise RankError(
                f"{doing}: expected the same {name} on all ranks, got another on rank {ranks} than on rank 0"
            )


def _digest(name: str, fact: object) -> int:
    """63 bits."""
    hashed = hashlib.blake2b(name.encode(), digest_size=8)
    if isinstance(fact, torch.Tensor):
        hashed.update(f"{tuple(fact.shape)} {fact.dtype}".encode())
        hashed.update(fact.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    else:
        hashed.update(repr(fact).encode())
    return int.from_bytes(hashed.digest(), "little") >> 1
