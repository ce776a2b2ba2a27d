"""What the ranks of test_lifecycle.py do. Each gives tokens and texts back."""

import copy
import io
import os
import pickle
import signal
import threading
from functools import partial

import torch
from torch.utils.data import DataLoader
from transformers import StoppingCriteria

import torch_cpullm
from tests.distributed.model_ranks import KEPT, prompt, world_of
from torch_cpullm import distributed
from torch_cpullm.distributed import ccl
from torch_cpullm.errors import CollectiveError
from torch_cpullm.ops import comm
from torch_cpullm.testing.models import WHOLE, bundled_model, tiny_model

IDS = torch.arange(3, 27).view(2, 12)


def tokens(model, count=12):
    return model.generate(**prompt(), max_new_tokens=count, do_sample=False)


def refusal(call):
    """What is said to a call, and by which error."""
    try:
        with torch.no_grad():
            call()
    except Exception as error:  # noqa: BLE001  (the test says which one it should be)
        return f"{type(error).__name__}: {error}"
    return ""


def in_child(work):
    """What work() gives in a child of fork(), which ends like one of multiprocessing; call it to wait for that."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # a hang must not outlive the test
        with os.fdopen(writer, "wb") as out:
            pickle.dump(work(), out)
        os._exit(0)
    os.close(writer)

    def result():
        with os.fdopen(reader, "rb") as answer:
            found = pickle.load(answer)
        os.waitpid(child, 0)
        return found

    return result


def forked(rank, size, store, transport):
    """A child that tries to take part and one that leaves; workers of a DataLoader. The rank goes on meanwhile."""
    with world_of(rank, size, store, transport) as world:
        model = torch_cpullm.optimize(bundled_model(), **KEPT)
        found = {"tokens": [tokens(model)]}

        def take_part():
            calls = (
                lambda: comm.barrier(world.group),
                lambda: tokens(model),
                lambda: model(IDS),
                lambda: torch_cpullm.optimize(tiny_model(*WHOLE["llama"])),
            )
            return [refusal(call) for call in calls]

        def leave():
            distributed.shutdown()
            return tokens(torch_cpullm.optimize(bundled_model(), **KEPT))

        children = [in_child(take_part), in_child(leave)]
        found["tokens"].append(tokens(model))
        found["child"], found["alone"] = (child() for child in children)
        found["batches"] = []
        for batch in DataLoader(torch.arange(8), batch_size=4, num_workers=2, multiprocessing_context="fork"):
            found["batches"].append(batch)
            found["tokens"].append(tokens(model))
    return found


def copied(rank, size, store):
    """A copy beside its original, and in its place; files of a part; both after shutdown()."""
    with world_of(rank, size, store, "shm"):
        model = torch_cpullm.optimize(bundled_model(), **KEPT)
        clone = copy.deepcopy(model)
        found = {"tokens": [tokens(model), tokens(clone), tokens(model)]}
        found["refused"] = [refusal(partial(pickle.dumps, model)), refusal(partial(torch.save, clone, io.BytesIO()))]
        kept = copy.deepcopy(clone)
        del model, clone
        found["tokens"].append(tokens(kept))
    found["left"] = [refusal(lambda: tokens(kept)), refusal(lambda: kept(IDS)), refusal(lambda: copy.deepcopy(kept))]
    return found


def again(rank, size, store, transport):
    """Two models at once; shutdown() and another world, where the models of the first are refused."""
    with world_of(rank, size, store, transport):
        first = torch_cpullm.optimize(bundled_model(), **KEPT)
        second = torch_cpullm.optimize(tiny_model(*WHOLE["qwen3"]), **KEPT)
        found = {"first": [], "second": []}
        for _ in range(2):
            found["first"].append(tokens(first))
            found["second"].append(second.generate(IDS, max_new_tokens=12, do_sample=False))
    with world_of(rank, size, store, transport) as world:
        found["old"] = refusal(partial(tokens, first))
        found["world"] = (world.rank, world.size)
        del first
        found["first"].append(tokens(torch_cpullm.optimize(bundled_model(), **KEPT)))
        found["old too"] = refusal(lambda: torch_cpullm.optimize(second, **KEPT))
    return found


def second_try(rank, size, store):
    """A world that cannot be joined, since rank 1 has no oneCCL, and then one that can."""
    library = ccl._LIBRARY
    if rank == 1:
        ccl._LIBRARY = ("a package that is not installed", "libccl.so.1")
    try:
        with world_of(rank, size, store, "ccl"):
            found = {"first": ""}
    except CollectiveError as error:
        found = {"first": str(error)}
    ccl._LIBRARY = library
    with world_of(rank, size, store, "auto"):
        return found | {"tokens": [tokens(torch_cpullm.optimize(bundled_model(), **KEPT))]}


def mistaken(rank, size, store):
    """Rank 1's own code raises between two calls, which it catches; then it leaves a call out."""
    found = {}
    with world_of(rank, size, store, "shm"):
        model = torch_cpullm.optimize(bundled_model(), **KEPT)
        found["tokens"] = [tokens(model)]
        if rank == 1:
            found["own"] = refusal(lambda: {}["a key"])
        found["tokens"].append(tokens(model))
        if rank == 0:
            found["left out"] = refusal(lambda: tokens(model, 5))
        else:
            found["left out"] = refusal(lambda: tokens(model, 6))
        found["tokens"].append(tokens(model))
    return found


class Pause(StoppingCriteria):
    """Says when generate() has begun, and goes on when it may."""

    def __init__(self):
        self.begun, self.may_go_on = threading.Event(), threading.Event()

    def __call__(self, input_ids, scores, **kwargs):
        self.begun.set()
        self.may_go_on.wait()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def in_threads(rank, size, store):
    """generate() in a thread that is not the main one; and then a second call while that one's is under way."""
    found = {"tokens": []}
    with world_of(rank, size, store, "shm"):
        model = torch_cpullm.optimize(bundled_model(), **KEPT)
        other = torch_cpullm.optimize(tiny_model(*WHOLE["llama"]), **KEPT)
        found["tokens"].append(tokens(model))
        pause = Pause()

        def generate():
            made = model.generate(**prompt(), max_new_tokens=12, do_sample=False, stopping_criteria=[pause])
            found["tokens"].append(made)

        thread = threading.Thread(target=generate)
        thread.start()
        pause.begun.wait()
        found["meanwhile"] = [refusal(lambda: tokens(model)), refusal(lambda: other.generate(IDS, max_new_tokens=2))]
        pause.may_go_on.set()
        thread.join()
        found["tokens"].append(tokens(model))
    return found
