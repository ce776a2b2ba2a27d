"""One rank of test_two_hosts.py, started by torchrun: what a user's script does, and what it found out as JSON."""

import json
import sys
from pathlib import Path

import torch_cpullm
from tests.distributed.model_ranks import prompt
from torch_cpullm.testing.models import bundled_model


def main():
    world = torch_cpullm.distributed.init(timeout_s=120.0)
    model = torch_cpullm.optimize(bundled_model())
    tokens = model.generate(**prompt(), max_new_tokens=32, do_sample=False)
    return {
        "network": Path("/proc/self/ns/net").stat().st_ino,
        "hosts": world.hosts,
        "transport": world.reach.transport,
        "tokens": tokens.tolist(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main()) + "\n")
