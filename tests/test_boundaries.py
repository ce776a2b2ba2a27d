"""The boundaries of ARCHITECTURE.md that no other tool checks: what must not stand where."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = sorted((ROOT / "torch_cpullm").rglob("*.py"))
CPP = sorted((ROOT / "csrc").rglob("*.cpp")) + sorted((ROOT / "csrc").rglob("*.h"))


def offenders(files, pattern, allowed):
    return [
        f"{file.relative_to(ROOT)}:{number}"
        for file in files
        if not re.match(allowed, file.relative_to(ROOT).as_posix())
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line.split("#")[0] if file.suffix == ".py" else line.split("//")[0])
    ]


RULES = {
    "only ops calls torch.ops": (PYTHON, r"torch\.ops\.(?!torch_cpullm\.\*)", r"torch_cpullm/ops/"),
    "only ops loads the library": (PYTHON, r"load_library\(", r"torch_cpullm/ops/library.py"),
    "only pack and what holds packed bytes re-lay weights": (
        PYTHON,
        r"ops\.pack\(",
        r"torch_cpullm/(pack/|modules/pack)",
    ),
    "only swap.py, and modules that become others, change classes": (
        PYTHON,
        r"__class__ =",
        r"torch_cpullm/modules/(swap|layer|linear|embedding).py",
    ),
    "only config.py reads the environment": (PYTHON, r"os\.environ|getenv", r"torch_cpullm/config.py"),
    "no model is named in the core": (
        PYTHON,
        r"(?i)\b(llama|qwen|gemma|mistral|phi\d?\b|gpt.?neox|gpt.?j\b|falcon|cohere|stablelm|starcoder)",
        r"torch_cpullm/(benchmark|cli|demo|testing)/",
    ),
    "only bindings include torch": (CPP, r"#include <(ATen|torch|c10)", r"csrc/bindings/"),
    "kernels do not allocate, print, throw or thread": (
        [file for file in CPP if "/kernels/" in file.as_posix()],
        r"\bnew\b|malloc|std::vector|printf|std::cout|\bthrow\b|omp_|std::thread",
        r"nothing",
    ),
    "no vendor and no product decides": (CPP, r"(?i)genuineintel|authenticamd|zen ?5|sapphire", r"nothing"),
    "no pickle of foreign files": (PYTHON, r"pickle\.load|weights_only=False", r"nothing"),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule):
    assert offenders(*RULES[rule]) == []
