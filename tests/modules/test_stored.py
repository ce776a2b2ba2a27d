"""save() and load(): the same bits, the file's own memory, and a sentence for every folder that is not whole."""

import copy
import json
import pickle
import struct
import subprocess
import sys

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, LlamaForCausalLM

import torch_cpullm
from torch_cpullm.errors import StoredModelError, UnsupportedModelError
from torch_cpullm.machine import MappedFiles
from torch_cpullm.pack import store
from torch_cpullm.testing.models import ATTENTION_ONLY, LEFT_ALONE, WHOLE, bundled_model, bundled_tokenizer, tiny_model
from torch_cpullm.testing.outliers import plant_outliers

IDS = torch.arange(10, 40)[None]
FAMILIES = {**WHOLE, **ATTENTION_ONLY, **LEFT_ALONE}


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def tokens(model, count=12):
    return model.generate(IDS, max_new_tokens=count, min_new_tokens=count, do_sample=False)


@pytest.fixture
def saved(tmp_path):
    model = torch_cpullm.optimize(bundled_model(torch.bfloat16))
    torch_cpullm.save(model, tmp_path / "model")
    return model, tmp_path / "model"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back(family, tmp_path):
    model = torch_cpullm.optimize(tiny_model(*FAMILIES[family]))
    torch_cpullm.save(model, tmp_path)
    loaded = torch_cpullm.load(tmp_path, verify=True)
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(tokens(loaded), tokens(model))
    assert str(torch_cpullm.explain(loaded)) == str(torch_cpullm.explain(model))
    assert loaded.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    "choices",
    [
        {"weights": "int4"},
        {"weights": "int4", "symmetric": False, "lm_head": "bf16"},
        {"weights": "int8", "group_size": 64, "activations": "bf16"},
        {"weights": "bf16", "kv_cache": "bf16"},
        {"weights": "keep", "kv_cache": "keep"},
        {"embeddings": "keep"},
        {"attention": "keep"},
    ],
    ids=str,
)
def test_every_choice_comes_back(choices, tmp_path):
    model = torch_cpullm.optimize(plant_outliers(bundled_model(torch.bfloat16)), **choices)
    torch_cpullm.save(model, tmp_path)
    loaded = torch_cpullm.load(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(tokens(loaded), tokens(model))
    # The same choices again: nothing to do, as for the model that was saved.
    before = loaded.model.layers[0].mlp.down_proj.packed
    assert torch_cpullm.optimize(loaded, **choices).model.layers[0].mlp.down_proj.packed is before


def test_a_loaded_model_is_a_model(saved):
    model, folder = saved
    loaded = torch_cpullm.load(folder)
    expected = tokens(model)
    for other in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert torch.equal(tokens(other), expected)
    assert not loaded.training
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    with pytest.warns(UserWarning, match="dequantised"):
        torch_cpullm.restore(loaded)
    assert type(loaded) is LlamaForCausalLM
    assert type(loaded.model.layers[0].mlp.down_proj) is nn.Linear
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_the_tokenizer_goes_along(saved, tmp_path):
    _, folder = saved
    text = "Call me Ishmael."
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == bundled_tokenizer()(text).input_ids
    tiny = torch_cpullm.optimize(tiny_model(*WHOLE["llama"]))
    torch_cpullm.save(tiny, tmp_path / "with", bundled_tokenizer())
    torch_cpullm.save(tiny, tmp_path / "without")
    assert (tmp_path / "with" / "tokenizer.json").exists()
    assert not (tmp_path / "without" / "tokenizer.json").exists()


def test_weights_lie_in_the_file(saved):
    _, folder = saved
    loaded = torch_cpullm.load(folder)
    tokens(loaded)
    maps = {m.path: m for m in psutil.Process().memory_maps()}
    mapped = maps[str(folder / store.PACKED)]
    assert mapped.rss > 0
    assert mapped.anonymous == 0  # nothing was copied
    start = loaded.model.layers[0].mlp.down_proj.packed.data_ptr()
    assert start % store.ALIGNMENT == 0


def test_weights_in_memory_of_their_own(saved, monkeypatch):
    model, folder = saved
    mapped = []  # bytes of the file that are in memory when a weight has been copied
    release = MappedFiles.release

    def released(files):
        release(files)
        mapped.append(sum(m.rss for m in psutil.Process().memory_maps() if m.path == str(folder / store.PACKED)))

    monkeypatch.setattr(MappedFiles, "release", released)
    loaded = torch_cpullm.load(folder, copy=True)
    assert torch.equal(tokens(loaded), tokens(model))
    assert loaded.model.embed_tokens.bytes.data_ptr() == loaded.lm_head.packed.data_ptr()
    assert len(mapped) > 1
    assert not any(mapped)
    assert str(folder / store.PACKED) not in {m.path for m in psutil.Process().memory_maps()}
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_saving_over_itself(saved):
    model, folder = saved
    loaded = torch_cpullm.load(folder)
    torch_cpullm.save(loaded, folder)
    assert torch.equal(tokens(loaded), tokens(model))
    assert torch.equal(tokens(torch_cpullm.load(folder, verify=True)), tokens(model))


def test_another_process(saved):
    model, folder = saved
    script = (
        "import sys, torch, torch_cpullm; ids = torch.arange(10, 40)[None];"
        "model = torch_cpullm.load(sys.argv[1]);"
        "print(model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout.splitlines()[-1]) == tokens(model).tolist()


class Own(LlamaForCausalLM):
    pass


class Namesake(nn.Module):
    pass


Namesake.__name__ = "GPT2LMHeadModel"


def test_what_cannot_be_saved(tmp_path):
    plain = tiny_model(*WHOLE["llama"])
    with pytest.raises(UnsupportedModelError, match="not optimised"):
        torch_cpullm.save(plain, tmp_path)
    plain.__class__ = Own
    with pytest.raises(UnsupportedModelError, match="expected a class of transformers, got 'Own'"):
        torch_cpullm.save(torch_cpullm.optimize(plain), tmp_path)
    with pytest.raises(UnsupportedModelError, match="another one named 'GPT2LMHeadModel'"):
        torch_cpullm.save(torch_cpullm.optimize(Namesake()), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_leaves_no_record(saved, monkeypatch):
    model, folder = saved

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        torch_cpullm.save(model, folder)
    with pytest.raises(StoredModelError, match="written whole"):
        torch_cpullm.load(folder)
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


def edit(folder, change):
    record = json.loads((folder / store.RECORD).read_text())
    change(record)
    (folder / store.RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize("name", [store.CONFIG, store.PACKED, store.OTHER])
def test_a_truncated_or_missing_file(saved, name):
    _, folder = saved
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-64])
    with pytest.raises(StoredModelError, match=f"{name}: expected {len(whole)} bytes, got {len(whole) - 64}"):
        torch_cpullm.load(folder)
    (folder / name).unlink()
    with pytest.raises(StoredModelError, match=f"expected {name}"):
        torch_cpullm.load(folder)


def test_changed_bytes(saved):
    _, folder = saved
    data = bytearray((folder / store.PACKED).read_bytes())
    data[-1000] ^= 1
    (folder / store.PACKED).write_bytes(data)
    with pytest.raises(StoredModelError, match="SHA-256"):
        torch_cpullm.load(folder, verify=True)


def test_another_configuration_of_the_same_size(saved):
    _, folder = saved
    text = (folder / store.CONFIG).read_text()
    (folder / store.CONFIG).write_text(text.replace('"rope_theta": 10000', '"rope_theta": 10001'))
    assert (folder / store.CONFIG).read_text() != text
    with pytest.raises(StoredModelError, match=r"config\.json: its bytes are not those that were saved"):
        torch_cpullm.load(folder)


def test_a_multiplier_that_is_lost(tmp_path):
    torch_cpullm.save(torch_cpullm.optimize(plant_outliers(bundled_model(torch.bfloat16))), tmp_path)
    kept = {name: t for name, t in load_file(tmp_path / store.OTHER).items() if ":" not in name}
    save_file(kept, tmp_path / store.OTHER)
    edit(tmp_path, lambda r: r["files"][store.OTHER].update(bytes=(tmp_path / store.OTHER).stat().st_size))
    with pytest.raises(StoredModelError, match="multiplier"):
        torch_cpullm.load(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("heads", 7), ("kv_heads", 3), ("channels", 48), ("layer_index", 99)])
def test_numbers_that_do_not_fit_are_refused(saved, field, value):
    _, folder = saved
    edit(folder, lambda r: r["model"]["plan"]["layers"][0]["structure"]["attention"].update({field: value}))
    with pytest.raises((ValueError, IndexError, TypeError, RuntimeError)):
        tokens(torch_cpullm.load(folder))


def test_a_save_that_fails_before_the_weights(saved, monkeypatch):
    model, folder = saved
    monkeypatch.setattr(type(model.config), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        torch_cpullm.save(model, folder)
    with pytest.raises(StoredModelError, match="written whole"):
        torch_cpullm.load(folder)


@pytest.mark.parametrize("where", ["header length", "header", "a weight's own header"])
def test_a_broken_header(saved, where):
    _, folder = saved
    data = bytearray((folder / store.PACKED).read_bytes())
    if where == "header length":
        data[:8] = struct.pack("<Q", 1 << 60)
    elif where == "header":
        data[8:40] = b"x" * 32
    else:
        start = 8 + struct.unpack("<Q", data[:8])[0]
        data[start : start + 64] = b"\xff" * 64
    (folder / store.PACKED).write_bytes(data)
    with pytest.raises(StoredModelError):
        torch_cpullm.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(version=99), "expected version 3, got 99"),
        (lambda r: r.pop("files"), "expected bytes and sha256"),
        (lambda r: r.pop("model"), "model: expected an object"),
        (lambda r: r["model"].update(architecture="Popen"), "expected a class of transformers, got 'Popen'"),
        (
            lambda r: r["model"].update(architecture="GPT2LMHeadModel"),
            "configuration of a GPT2LMHeadModel, got a LlamaConfig",
        ),
        (lambda r: r["model"]["modules"].pop("lm_head"), "model.embed_tokens: expected a table that reads a packed"),
        (lambda r: r["model"]["modules"]["lm_head"]["format"].update(codes="int4"), "lm_head: expected outputs"),
        (lambda r: r["model"]["modules"]["model.embed_tokens"].update(owner="model.norm"), "packed Linear's bytes"),
        (lambda r: r["model"]["plan"]["layers"][0]["structure"].update(path="model.layers.99"), "plan: expected parts"),
        (lambda r: r["model"].update(dtype="float99"), "model.dtype: expected one of"),
    ],
)
def test_a_record_that_does_not_fit(saved, change, message):
    _, folder = saved
    edit(folder, change)
    with pytest.raises(StoredModelError, match=message):
        torch_cpullm.load(folder)


def test_no_json(saved):
    _, folder = saved
    (folder / store.RECORD).write_bytes(b"\x80\x04")
    with pytest.raises(StoredModelError, match="expected JSON"):
        torch_cpullm.load(folder)
    (folder / store.RECORD).unlink()
    with pytest.raises(StoredModelError, match=r"without torch_cpullm\.json"):
        torch_cpullm.load(folder)


def test_other_weights_beside_the_record(saved):
    _, folder = saved
    file = folder / store.OTHER
    tensors = load_file(file)
    tensors["model.norm.scale"] = tensors.pop("model.norm.weight")
    save_file(tensors, file)
    size = file.stat().st_size
    edit(folder, lambda r: r["files"][store.OTHER].update(bytes=size))
    with pytest.raises(StoredModelError, match=r"without model\.norm\.weight and with model\.norm\.scale"):
        torch_cpullm.load(folder)
    tensors["model.norm.weight"] = tensors.pop("model.norm.scale")[:-1]
    save_file(tensors, file)
    size = file.stat().st_size
    edit(folder, lambda r: r["files"][store.OTHER].update(bytes=size))
    with pytest.raises(StoredModelError, match=r"model\.norm\.weight: expected shape"):
        torch_cpullm.load(folder)
