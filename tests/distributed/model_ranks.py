"""What the ranks of test_models.py do: they join a world, share a model, generate. Each gives tokens and texts back."""

import os
import signal
import time
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, StoppingCriteria, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

import torch_cpullm
from torch_cpullm import distributed
from torch_cpullm.errors import CollectiveError, RankError
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.modules.packed import PackedModule
from torch_cpullm.ops import comm
from torch_cpullm.pretrained import CpuLlmConfig
from torch_cpullm.testing.models import WHOLE, bundled_model, bundled_tokenizer, tiny_model

PROMPTS = [
    "class Reader:\n    def __init__(self, stream, errors='strict'):\n",
    "def main(args=None):\n",
    "import os\nimport sys\n\ndef get_path(name):\n    return",
]  # what the bundled model knows
PATIENCE_S = 120.0  # CPUs are shared, and may be away for long
SHORT_S = 3.0
KEPT = {"weights": "keep", "kv_cache": "keep"}


@contextmanager
def world_of(rank, size, store, transport, timeout_s=PATIENCE_S):
    """This process as torchrun would have started it, with the parent's store in place of torchrun's."""
    variables = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCH_CPULLM_COMM": transport,
    }
    os.environ.pop("OMP_NUM_THREADS", None)  # the parent's; a rank computes on its own CPUs alone
    os.environ.update({name: str(value) for name, value in variables.items()})
    try:
        yield distributed.init(timeout_s)
    finally:
        distributed.shutdown()


def prompt():
    return bundled_tokenizer()(PROMPTS[0], return_tensors="pt")


def batch():
    return bundled_tokenizer()(PROMPTS, return_tensors="pt", padding=True)


def drawn_of(model, rank=0):
    """Tokens by the fused sampler."""
    torch.manual_seed(5 + rank)  # ranks come with random numbers of their own; rank 0's count
    return model.generate(**prompt(), do_sample=True, top_k=9, max_new_tokens=24)


def tokens_of(model, rank=0):
    """By every way of generate() that a rank may part on; names and tokens."""
    one, three = prompt(), batch()
    how = {"max_new_tokens": 24, "pad_token_id": 0}
    ways = {
        "greedy": (one, {"do_sample": False, "max_new_tokens": 48}),
        "greedy, padded batch": (three, {"do_sample": False}),
        "greedy, penalty": (one, {"do_sample": False, "repetition_penalty": 1.3}),
        "beams": (three, {"do_sample": False, "num_beams": 3}),
        "sampling, top_k": (three, {"do_sample": True, "top_k": 20, "temperature": 0.8}),
        "sampling, all words": (three, {"do_sample": True, "top_k": 0, "top_p": 0.9}),
        "sampling, beams": (one, {"do_sample": True, "num_beams": 2}),
        "without a cache": (one, {"do_sample": False, "use_cache": False, "max_new_tokens": 8}),
    }
    found = {}
    for name, (inputs, choices) in ways.items():
        torch.manual_seed(11 + rank)
        found[name] = model.generate(**inputs, **{**how, **choices})
    return found


def bundled(rank, size, store, transport):
    """Tokens and logits of the bundled model, its weights as they are; then in INT8, whose sums differ a little."""
    with world_of(rank, size, store, transport) as world:
        assert (world.rank, world.size) == (rank, size)
        model = torch_cpullm.optimize(bundled_model(), sampler="fused", **KEPT)
        tokens = {"fused sampler": drawn_of(model, rank)}
        model = torch_cpullm.optimize(bundled_model(), **KEPT)
        tokens |= tokens_of(model, rank)
        with torch.no_grad():
            logits = model(**batch()).logits
        int8 = torch_cpullm.optimize(bundled_model())
        return {"tokens": tokens, "logits": logits, "int8": tokens_of(int8, rank), "way": world.reach.transport}


def families(rank, size, store):
    """Tokens of a tiny model of each family; and of a bfloat16 one, whose sums are rounded for the way."""
    ids_BT = torch.arange(3, 27).view(2, 12)
    found = {}
    with world_of(rank, size, store, "shm"):
        for name, (config, fields) in WHOLE.items():
            model = torch_cpullm.optimize(tiny_model(config, fields), **KEPT)
            with torch.no_grad():
                logits = model(ids_BT).logits
            found[name] = (logits, model.generate(ids_BT, max_new_tokens=16, do_sample=False))
        model = torch_cpullm.optimize(bundled_model(torch.bfloat16), weights="keep")
        with torch.no_grad():
            found["bfloat16"] = (model(**prompt()).logits, model.generate(**prompt(), max_new_tokens=8))
    return found


class Made(TorchDispatchMode):
    """Counts the bytes of packed weights that operators make: by packing, cutting and copying."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        ops = torch.ops.torch_cpullm
        makers = (ops.pack, ops.slice_packed, ops.copy_packed, torch.ops.aten.clone)
        if func.overloadpacket in makers and out.dtype == torch.uint8:
            self.bytes += out.numel()
        return out


def loading(rank, size, store, saved, checkpoint, packed):
    """Folders of save() and of save_pretrained(), and a checkpoint that is packed while it loads.

    Tokens; bytes of packed linear layers, of all packed modules, of what was made on the way, and as explain() has it.
    """
    found = {}
    with world_of(rank, size, store, "shm"):
        ways = {
            "load": lambda: torch_cpullm.load(saved),
            "copy": lambda: torch_cpullm.load(saved, copy=True),
            "from_pretrained": lambda: AutoModelForCausalLM.from_pretrained(
                checkpoint, dtype=torch.float32, quantization_config=CpuLlmConfig()
            ),
            "packed": lambda: AutoModelForCausalLM.from_pretrained(packed),
        }
        for name, load in ways.items():
            with Made() as made:
                model = load()
            modules = [m for m in model.modules() if isinstance(m, PackedModule)]
            own = sum(m.packed.numel() for m in modules if isinstance(m, PackedLinear))
            every = sum(m.packed.numel() for m in modules)
            tokens = model.generate(**prompt(), max_new_tokens=24, do_sample=False)
            found[name] = (tokens, own, every, made.bytes, torch_cpullm.explain(model).weight_bytes_after)
    return found


class Heard(BaseStreamer):
    """Counts what it is told."""

    def __init__(self):
        self.count = self.ends = 0

    def put(self, value):
        self.count += value.numel()

    def end(self):
        self.ends += 1


class Opinion(StoppingCriteria):
    """Stops at another length on each rank."""

    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def one_rank_speaks(rank, size, store):
    """Streams of rank 0 alone; its opinion on when to stop; and what happens when the calls are not the same."""
    found = {}
    with world_of(rank, size, store, "shm"):
        model = torch_cpullm.optimize(bundled_model())
        heard, inputs = Heard(), prompt()
        model.generate(**inputs, max_new_tokens=9, streamer=heard)
        found["heard"] = (heard.count, heard.ends)
        stream = TextIteratorStreamer(bundled_tokenizer(), skip_prompt=True)
        model.generate(**inputs, max_new_tokens=9, streamer=stream)
        found["text"] = "".join(stream)
        length = inputs["input_ids"].shape[1] + 5 + rank
        found["stopped"] = model.generate(**inputs, max_new_tokens=30, stopping_criteria=[Opinion(length)]).shape[1]
        found["stopped beams"] = model.generate(
            **inputs, max_new_tokens=30, num_beams=2, stopping_criteria=[Opinion(length)]
        ).shape[1]
        for name, call in {
            "prompts": lambda: model.generate(inputs["input_ids"] + rank, max_new_tokens=4),
            "numbers": lambda: model.generate(**inputs, max_new_tokens=4 + rank),
            "names": lambda: model.generate(**inputs, max_new_tokens=4, **({"num_beams": 1} if rank else {})),
            "choices": lambda: torch_cpullm.optimize(bundled_model(), weights="int8" if rank else "bf16"),
            "weights": lambda: torch_cpullm.optimize(another_model(rank)),
        }.items():
            found[name] = disagreement(call)
        found["after all that"] = model.generate(**inputs, max_new_tokens=9)
    return found


def disagreement(call):
    try:
        call()
    except RankError as error:
        return str(error)
    return ""


def another_model(seed):
    """One whose embeddings depend on the seed."""
    model = tiny_model(*WHOLE["llama"])
    torch.manual_seed(seed)
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    return model


class Fate(StoppingCriteria):
    """Does something to this rank at its fifth token."""

    def __init__(self, what):
        self.what, self.tokens = what, 0

    def __call__(self, input_ids, scores, **kwargs):
        self.tokens += 1
        if self.tokens == 5:
            self.what()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def fail_in_generate(rank, size, store, transport, fate):
    """The last rank is killed, stopped or raises in the middle of generate(): what the others are told, and when."""
    with world_of(rank, size, store, transport, SHORT_S):
        model = torch_cpullm.optimize(bundled_model())
        what = {
            "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
            "raises": lambda: raise_(KeyError("a criterion of the user's")),
        }[fate]
        watch = Watch()
        criteria = [Fate(what if rank == size - 1 else watch.start)]
        try:
            model.generate(**prompt(), max_new_tokens=30, stopping_criteria=criteria)
        except CollectiveError as error:
            return str(error), watch.seconds()
        except KeyError:
            time.sleep(SHORT_S + 5)  # it lives on, in a notebook say
            return "", 0.0
    return "no failure", 0.0


class Watch:
    def start(self):
        self.began = time.perf_counter()

    def seconds(self):
        return time.perf_counter() - self.began


def raise_(error):
    raise error


def counted(rank, size, store):
    """How many collectives one token more takes."""
    with world_of(rank, size, store, "shm") as world:
        model = torch_cpullm.optimize(bundled_model())
        return collectives_of_a_token(model, world.group, **prompt()), len(model.model.layers)


def collectives_of_a_token(model, group, **inputs):
    rounds = []
    for tokens in (20, 21):
        before = comm.group_info(group).collectives
        model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        rounds.append(comm.group_info(group).collectives - before)
    return rounds[1] - rounds[0]


ONE_HEAD = {"num_attention_heads": 1, "num_key_value_heads": 1}  # that two ranks cannot share
FALCON, GPTJ = WHOLE["falcon, one KV head"][1], WHOLE["gpt-j"][1]
PARALLEL = {
    name: (config, {**sizes, **fields})
    for name, config, sizes, fields in (
        ("both halves", "PhiConfig", WHOLE["phi"][1], {"intermediate_size": 256}),
        ("attention", "PhiConfig", WHOLE["phi"][1], {"intermediate_size": 96}),
        ("MLP", "CohereConfig", WHOLE["phi"][1], {"intermediate_size": 256, **ONE_HEAD}),
        ("neither", "CohereConfig", WHOLE["phi"][1], {"intermediate_size": 96, **ONE_HEAD}),
        ("five heads for two", "FalconConfig", FALCON, {}),
        ("angles of its own", "GPTJConfig", GPTJ, {}),
    )
}


def parallel(rank, size, store):
    """Models with parallel layers, by what ranks share of them: logits, tokens, and collectives of one token."""
    ids_BT, found = torch.arange(3, 27).view(2, 12), {}
    with world_of(rank, size, store, "shm") as world:
        for name, (config, fields) in PARALLEL.items():
            model = torch_cpullm.optimize(tiny_model(config, fields), **KEPT)
            with torch.no_grad():
                logits = model(ids_BT).logits
            tokens = model.generate(ids_BT, max_new_tokens=16, do_sample=False)
            found[name] = (logits, tokens, collectives_of_a_token(model, world.group, input_ids=ids_BT))
    return found
