"""Opening models: every way in, what is left untouched, and a clear error for everything that goes wrong."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from causal_tracing.errors import (
    CausalTracingError,
    InvalidOption,
    MachineError,
    ModelError,
    ModelNotFound,
    UnsupportedModel,
    UnsupportedTokenizer,
)
from causal_tracing.experiments.load import load
from causal_tracing.models import place
from causal_tracing.models.open import Opened, open_model
from hub import COMMIT, Hub, Repository, open_in_a_new_process, serve
from model_types.recipes import build
from tiny import SHAPE, logits, tiny_folder, tiny_gguf, tiny_model, tiny_tokenizer

EXACT: dict[str, Any] = {"rtol": 0, "atol": 0}


def refused(kind: type[CausalTracingError], *names: Any, **options: Any) -> str:
    """The message of exactly this error."""
    with pytest.raises(kind) as caught:
        open_model(*names, **options)
    assert caught.type is kind
    return str(caught.value)


def is_at_rest(network: torch.nn.Module) -> bool:
    gradients = any(parameter.requires_grad for parameter in network.parameters())
    return not gradients and not any(module.training for module in network.modules())


# --- folders ---


def test_a_folder_opens_at_rest_in_float32_and_equals_the_original(tmp_path: Path):
    model = tiny_folder(tmp_path / "m")
    opened = open_model(tmp_path / "m")
    assert is_at_rest(opened.network)
    assert {parameter.dtype for parameter in opened.network.parameters()} == {torch.float32}
    assert_close(logits(opened.network), logits(model), **EXACT)
    assert opened.tokenizer("the city").input_ids == tiny_tokenizer()("the city").input_ids
    checksum = hashlib.sha256((tmp_path / "m" / "model.safetensors").read_bytes()).hexdigest()
    assert opened.source == {"kind": "folder", "path": str(tmp_path / "m"), "sha256": checksum}
    assert opened.name == str(tmp_path / "m")


def test_the_checksum_sees_every_shard(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path, max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    lines = "".join(f"{hashlib.sha256(shard.read_bytes()).hexdigest()}  {shard.name}\n" for shard in shards)
    assert open_model(tmp_path).source["sha256"] == hashlib.sha256(lines.encode()).hexdigest()


def test_large_weights_are_told_apart_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny_folder(tmp_path)
    monkeypatch.setattr(place, "CHECKSUM_LIMIT", 10)
    source = open_model(tmp_path).source
    assert source["bytes"] == str((tmp_path / "model.safetensors").stat().st_size)
    assert source["modified"].endswith("+00:00")
    assert "sha256" not in source


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float64"])
def test_dtypes(tmp_path: Path, name: str):
    tiny_folder(tmp_path)
    for asked in (name, getattr(torch, name)):
        opened = open_model(tmp_path, dtype=asked, device="cpu")
        assert {parameter.dtype for parameter in opened.network.parameters()} == {getattr(torch, name)}


def test_dtype_auto_is_the_checkpoints(tmp_path: Path):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)  # pyright: ignore[reportArgumentType]
    tiny_tokenizer().save_pretrained(tmp_path)
    assert open_model(tmp_path, dtype="auto").network.dtype == torch.bfloat16
    assert open_model(tmp_path).network.dtype == torch.float32


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSAL_TRACING_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.usefixtures("own_cache")
def test_a_gguf_file_opens_and_equals_the_original(tmp_path: Path):
    model = tiny_gguf(tmp_path / "tiny.gguf")
    checksum = hashlib.sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest()
    for opened in (open_model(tmp_path / "tiny.gguf"), open_model(tmp_path, gguf_file="tiny.gguf")):
        assert_close(logits(opened.network), logits(model), **EXACT)
        assert is_at_rest(opened.network)
        assert opened.network.dtype == torch.float32
        assert opened.source == {"kind": "gguf", "path": str(tmp_path / "tiny.gguf"), "sha256": checksum}
        assert opened.tokenizer("ab", return_offsets_mapping=True)["offset_mapping"] == [(0, 1), (1, 2)]


@pytest.mark.usefixtures("own_cache")
def test_progress_off_means_silence_and_stdout_is_never_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    tiny_gguf(tmp_path / "tiny.gguf")
    open_model(tmp_path / "tiny.gguf", progress=False)
    assert capfd.readouterr() == ("", "")
    open_model(tmp_path / "tiny.gguf")
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "\r" in shown.err  # transformers' own bars: the test above can fail


def test_a_tokenizer_can_be_handed_in_for_a_folder_without_one(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    assert open_model(tmp_path, tokenizer).tokenizer is tokenizer


def test_the_callers_random_state_is_left_alone(tmp_path: Path):
    tiny_folder(tmp_path)
    before = torch.get_rng_state()
    open_model(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


# --- folders that cannot be opened ---


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "~/absent-model", "a/b/c", "absent.gguf", "", "C:\\m"])
def test_a_missing_path_is_no_hub_name(name: str):
    assert f"There is no folder or file {name}" in refused(ModelNotFound, name)


def test_a_missing_path_object_is_no_hub_name():
    assert "There is no folder or file absent" in refused(ModelNotFound, Path("absent"))


def test_a_folder_without_config(tmp_path: Path):
    (tmp_path / "notes.txt").touch()
    message = refused(ModelNotFound, tmp_path)
    assert "has no config.json" in message
    assert "it holds notes.txt" in message


def test_an_adapter_is_told_from_a_model(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match=r"is an adapter of peft, not a model\. Merge it into its base once"):
        open_model(tmp_path)


ADAPTERS = {  # what peft writes: of weights, which can be merged, and of learned prompts, which cannot
    "LORA": r"is an adapter of peft \(LORA\), not a model\. Merge it into its base org/base once, with Auto",
    "PROMPT_TUNING": r"of the kind PROMPT_TUNING, which puts learned vectors before every prompt: they are no tokens",
    "PREFIX_TUNING": "cannot be traced, nor merged into a model",
}


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("beside", ["nothing", "a configuration", "a model"])
def test_an_adapter_is_told_by_its_kind_whatever_lies_beside_it(tmp_path: Path, kind: str, beside: str):
    """transformers would open the base, or the model beside it, with the adapter where peft is installed."""
    if beside == "a model":
        tiny_folder(tmp_path)
    elif beside == "a configuration":
        tiny_model().config.save_pretrained(tmp_path)
    adapter = {"peft_type": kind, "base_model_name_or_path": "org/base", "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(UnsupportedModel, match=ADAPTERS[kind]):
        open_model(tmp_path)


def test_an_adapter_whose_configuration_cannot_be_read_is_one_all_the_same(tmp_path: Path):
    for said in ("{", "[]", '"LORA"'):
        (tmp_path / "adapter_config.json").write_text(said)
        assert "is an adapter of peft, not a model" in refused(UnsupportedModel, tmp_path)


def test_files_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Weights are saved for their owner alone, and an administrator, who runs tests, may read all the same."""
    tiny_folder(tmp_path)

    def refusing(path: Any, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    said = r"cannot be read \(.*: Permission denied\)\. Ask who owns it to let you \(such as by chmod a\+rX\)"
    with monkeypatch.context() as patched:
        patched.setattr(place, "_fingerprint", refusing)
        with pytest.raises(ModelNotFound, match=said):
            open_model(tmp_path)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refusing)
    with pytest.raises(ModelNotFound, match=said):
        open_model(tmp_path)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_model_of_images_and_text_opens_from_a_folder_and_reads_text(tmp_path: Path, family: str):
    built = build(family)
    built.save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    network = open_model(tmp_path / "m").network
    tokens = torch.tensor([[5, 9, 17, 25, 33, 11]])
    with torch.no_grad():
        found, expected = (each(input_ids=tokens).logits for each in (network, built))
    assert_close(found, expected, rtol=0, atol=0)


def test_a_file_that_is_no_gguf(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    assert "is a file. Give the folder" in refused(ModelNotFound, tmp_path / "model.safetensors")
    assert "There is no file x.gguf" in refused(ModelNotFound, tmp_path, gguf_file="x.gguf")
    (tmp_path / "x.gguf").write_bytes(b"not at all")
    assert "damaged or not whole" in refused(ModelError, tmp_path / "x.gguf")


@pytest.mark.parametrize("family", ["t5", "bart", "bert", "vit"])
def test_a_model_that_is_no_causal_decoder(tmp_path: Path, family: str):
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    message = refused(UnsupportedModel, tmp_path)
    assert f"model type '{family}'" in message
    reason = {"t5": "an encoder with a decoder", "bart": "an encoder with a decoder", "bert": "an encoder:"}
    assert reason.get(family, "not a language model") in message


def test_an_unknown_kind_of_model(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    assert "transformers does not know the kind" in refused(UnsupportedModel, tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "not a valid JSON file" in refused(ModelError, tmp_path)


def test_weights_that_lack_a_parameter_are_never_filled_with_random_ones(tmp_path: Path):
    tiny_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    message = refused(ModelError, tmp_path)
    assert "lack 1 of the parameters of LlamaForCausalLM: model.layers.2.mlp.up_proj.weight." in message


def test_a_saved_model_without_a_language_modelling_head(tmp_path: Path):
    AutoModel.from_config(AutoConfig.for_model("llama", **SHAPE)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert "lm_head.weight" in refused(ModelError, tmp_path)


def test_weights_of_another_shape(tmp_path: Path):
    tiny_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "could not be loaded" in refused(ModelError, tmp_path)


def test_damaged_and_absent_weights(tmp_path: Path):
    tiny_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"version https://git-lfs.github.com/spec/v1"):
        file.write_bytes(damaged)
        assert "A weights file of" in refused(ModelError, tmp_path)
    file.unlink()
    assert "no file named model.safetensors" in refused(ModelError, tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # for gpt2 transformers makes up an empty tokenizer
def test_a_folder_without_a_tokenizer(tmp_path: Path, family: str):
    tiny_model(family).save_pretrained(tmp_path)
    message = refused(UnsupportedTokenizer, tmp_path)
    assert "has no tokenizer" in message
    assert "hand one in with tokenizer=" in message


def test_what_is_no_tokenizer(tmp_path: Path):
    tiny_folder(tmp_path)
    assert "is a str, not a tokenizer" in refused(InvalidOption, tmp_path, "gpt2")
    assert "is a type, not a tokenizer" in refused(InvalidOption, tmp_path, type(tiny_tokenizer()))


CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def with_code(folder: Path, mark: Path) -> None:
    """A model that comes with Python code of its own; the code leaves a mark when it runs."""
    tiny_folder(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))


def test_code_out_of_a_folder_runs_only_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with_code(tmp_path / "m", tmp_path / "mark")
    assert "give trust_remote_code=True" in refused(ModelError, tmp_path / "m")
    assert not (tmp_path / "mark").exists()
    opened = open_model(tmp_path / "m", trust_remote_code=True)
    assert (tmp_path / "mark").exists()
    assert_close(logits(opened.network), logits(tiny_model()), **EXACT)


def test_options_that_do_not_exist(tmp_path: Path):
    tiny_folder(tmp_path)
    assert "Did you mean 'bfloat16'?" in refused(InvalidOption, tmp_path, dtype="bfloat61")
    assert "Valid: float32, bfloat16, float16, float64, auto." in refused(InvalidOption, tmp_path, dtype=torch.int8)
    assert "device='gpu0' is none" in refused(InvalidOption, tmp_path, device="gpu0")
    assert "revision='main' does not apply to" in refused(InvalidOption, tmp_path, revision="main")
    assert "gguf_file='x' does not apply to the demo" in refused(InvalidOption, "demo", gguf_file="x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_this_machine_does_not_have(tmp_path: Path):
    tiny_folder(tmp_path)
    assert "device='cuda' cannot be used on this machine" in refused(InvalidOption, tmp_path, device="cuda")


# --- models from memory ---


def test_a_model_from_memory_is_left_as_it_is():
    model = tiny_model(attn_implementation="eager").to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    model.train()
    model.model.layers[1].eval()
    model.lm_head.requires_grad_(False)
    tokenizer = tiny_tokenizer()
    before = state(model)
    opened = open_model(model, tokenizer)
    assert opened.network is model
    assert opened.tokenizer is tokenizer
    assert state(model) == before
    assert opened.source == {"kind": "memory", "class": "transformers.models.llama.modeling_llama.LlamaForCausalLM"}
    assert opened.name == "LlamaForCausalLM"


def state(model: Any) -> dict[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "storage": [(parameter.data_ptr(), parameter.dtype, parameter.device) for parameter in model.parameters()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "attention": model.config._attn_implementation,
    }


def test_a_model_from_memory_needs_its_tokenizer():
    assert "handed in without its tokenizer" in refused(InvalidOption, tiny_model())


@pytest.mark.parametrize("option", [{"dtype": "float32"}, {"device": "cpu"}, {"revision": "main"}, {"gguf_file": "x"}])
def test_a_model_from_memory_takes_no_options(option: dict[str, str]):
    message = refused(InvalidOption, tiny_model(), tiny_tokenizer(), **option)
    assert f"{next(iter(option))}=" in message
    assert "already in memory" in message


SMALL = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 97}
BERT = SHAPE | {"num_key_value_heads": 4}


@pytest.mark.parametrize(
    "model",
    [
        AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **SMALL)),
        AutoModel.from_config(AutoConfig.for_model("llama", **SHAPE)),
        AutoModelForSequenceClassification.from_config(AutoConfig.for_model("llama", **SHAPE)),
        AutoModel.from_config(AutoConfig.for_model("bert", **BERT)),
        torch.nn.Linear(2, 2),
        17,
    ],
    ids=["t5", "no head", "classifier", "bert", "module", "number"],
)
def test_something_from_memory_that_is_no_causal_language_model(model: Any):
    message = refused(UnsupportedModel, model, tiny_tokenizer())
    said = {
        "T5": "an encoder with a decoder: .* Give a causal decoder",
        "Ll": r"has no head that predicts the next token\. Load the model with one: AutoModelForCausalLM",
        "Be": r"an encoder: each of its tokens sees the later ones\. Give a causal decoder",
    }.get(type(model).__name__[:2], "cannot be opened")
    assert re.search(said, message)
    assert ("AutoModelForCausalLM" in message) == (type(model).__name__[:2] == "Ll")  # no advice that cannot help


def test_learned_prompts_are_not_the_model_inside():
    class PeftModelForCausalLM(torch.nn.Module):
        peft_config: ClassVar = {"default": SimpleNamespace(is_prompt_learning=True, peft_type="PROMPT_TUNING")}

    message = refused(UnsupportedModel, PeftModelForCausalLM(), tiny_tokenizer())
    assert "of the kind PROMPT_TUNING puts learned vectors before every prompt" in message
    assert "is another one" in message


def test_an_encoder_from_memory_is_found_out_when_it_is_checked():
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **BERT)).eval()
    with pytest.raises(UnsupportedModel):
        load(model, tiny_tokenizer())


def test_a_model_without_weights():
    with torch.device("meta"):
        model = tiny_model()
    said = refused(UnsupportedModel, model, tiny_tokenizer())
    assert "has no weights: all its 39 parameters are on the meta device (model.embed_tokens.weight, " in said
    assert "and 36 more), and no hook of accelerate's says where their numbers are kept." in said


def test_a_model_without_some_of_its_weights():
    model = tiny_model()
    model.get_submodule("model.layers.1.mlp").to("meta")
    said = refused(UnsupportedModel, model, tiny_tokenizer())
    assert "lacks weights: 3 of its 39 parameters are on the meta device (model.layers.1.mlp.gate_proj.weight, " in said


def test_a_model_whose_weights_accelerate_keeps_is_left_as_it_is():
    model = cpu_offload(tiny_model(), execution_device=torch.device("cpu"))
    assert open_model(model, tiny_tokenizer()).network is model
    assert all(parameter.is_meta for parameter in model.parameters())


def test_load_checks_the_anatomy(tmp_path: Path):
    tiny_folder(tmp_path)
    model = load(tmp_path)
    assert model.num_layers == 4
    assert model.name == str(tmp_path)
    assert model.source["kind"] == "folder"
    assert "resid_post" in model.anatomy.components


# --- nnsight ---

NNSIGHT = """
import sys
sys.path.insert(0, {tests!r})
import torch
from causal_tracing.errors import UnsupportedModel
from causal_tracing.models.open import open_model
from tiny import logits, tiny_model, tiny_tokenizer
open_model({folder!r})
assert "nnsight" not in sys.modules, "nnsight was imported"

from nnsight import LanguageModel, NNsight
lazy = LanguageModel({folder!r}, tokenizer=tiny_tokenizer())
assert not lazy.dispatched
opened = open_model(lazy)
assert lazy.dispatched and opened.network is lazy._module and opened.tokenizer is lazy.tokenizer
assert torch.equal(logits(opened.network), logits(tiny_model()))
assert opened.source["wrapper"] == "nnsight LanguageModel", opened.source
own = tiny_tokenizer()
assert open_model(lazy, own).tokenizer is own

model = tiny_model()
assert open_model(NNsight(model), own).network is model
def refused(wrapper):
    try:
        open_model(wrapper)
    except UnsupportedModel as error:
        assert "holds 1 stored edit(s)" in str(error), error
        return True

with lazy.edit(inplace=True):
    lazy.model.layers[1].output[:] = 0
assert refused(lazy)
lazy.clear_edits()
with lazy.edit() as (_, edited):
    edited.model.layers[1].output[:] = 0
assert refused(edited)
assert open_model(lazy).network is lazy._module
print("done")
"""


def test_nnsight_models_are_dispatched_not_copied_and_nnsight_is_not_imported(tmp_path: Path):
    pytest.importorskip("nnsight")
    tiny_folder(tmp_path / "m")
    code = NNSIGHT.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path / "m"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr


# --- the hub ---


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    tiny_folder(folder / "fine")
    AutoConfig.for_model("t5").save_pretrained(folder / "t5")
    with_code(folder / "code", folder / "mark")
    tiny_gguf(folder / "gguf.gguf")
    tiny_model().save_pretrained(folder / "shards", max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(folder / "shards")
    tiny_model().save_pretrained(folder / "untokenized")
    for kind, name in (("empty", "config.json"), ("ggufs", "tiny.gguf")):
        (folder / kind).mkdir()
        source = folder / "fine" / "config.json" if kind == "empty" else folder / "gguf.gguf"
        (folder / kind / name).write_bytes(source.read_bytes())
        if kind == "empty":
            tiny_tokenizer().save_pretrained(folder / kind)
    for kind in ("lora", "lora-beside"):
        (folder / kind).mkdir()
        (folder / kind / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "a/b"}')
    shutil.copytree(folder / "empty", folder / "lora-beside", dirs_exist_ok=True)
    with serve() as hub:
        for kind in ("fine", "t5", "code", "shards", "untokenized", "empty", "ggufs", "lora", "lora-beside"):
            hub.repositories[f"tiny/{kind}"] = Repository(folder=folder / kind)
        # Without "main": whoever forgets the revision at any step gets nothing.
        hub.repositories["tiny/tagged"] = Repository(folder=folder / "fine", revisions=("v1",))
        for fault in ("gone", "private", "gated", "down", "stalls", "stalls inside", "breaks off", "breaks off once"):
            name = f"tiny/{fault.replace(' ', '-')}"
            hub.repositories[name] = Repository(folder=folder / "fine", fault=fault)
        yield hub


JOBS: list[tuple[str, dict[str, Any]]] = [
    ("tiny/fine", {}),
    ("tiny/tagged", {"revision": "v1", "dtype": "float64"}),
    ("tiny/shards", {}),
    ("tiny/ggufs", {"gguf_file": "tiny.gguf"}),
    ("tiny/breaks-off-once", {}),
    ("tiny/code", {}),
]
FAULTS: list[tuple[str, dict[str, Any]]] = [
    *((f"tiny/{name}", {}) for name in ("t5", "untokenized", "empty", "ggufs", "gone", "private", "gated", "down")),
    *((f"tiny/{name}", {}) for name in ("stalls", "stalls-inside", "breaks-off", "lora", "lora-beside")),
    ("tiny/fine", {"revision": "v2"}),
    ("no..such", {}),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home") / "hf"


@pytest.fixture(scope="module")
def opened(hub: Hub, home: Path) -> dict[str, Any]:
    answers, errors = open_in_a_new_process(hub, home, JOBS)
    return {f"{name}{options or ''}": answer for (name, options), answer in zip(JOBS, answers, strict=True)} | {
        "stderr": errors
    }


@pytest.fixture(scope="module")
def faults(hub: Hub, home: Path) -> dict[str, Any]:
    answers, _ = open_in_a_new_process(hub, home.with_name("faults"), FAULTS, at_once=True)
    return {f"{name}{options or ''}": answer for (name, options), answer in zip(FAULTS, answers, strict=True)}


def test_the_hub_gives_the_model_and_its_commit(opened: dict[str, Any]):
    answer = opened["tiny/fine"]
    assert answer["source"] == {"kind": "hub", "id": "tiny/fine", "commit": COMMIT}
    assert (answer["dtypes"], answer["grads"], answer["training"]) == (["torch.float32"], False, False)
    assert answer["logits"] == logits(tiny_model())[0, -1].tolist()
    assert answer["tokens"] == tiny_tokenizer()("the city of").input_ids
    assert "causal-tracing: downloading tiny/fine/model.safetensors" in opened["stderr"]


def test_a_revision_and_a_dtype(opened: dict[str, Any]):
    answer = opened["tiny/tagged{'revision': 'v1', 'dtype': 'float64'}"]
    assert answer["source"] == {"kind": "hub", "id": "tiny/tagged", "commit": COMMIT, "revision": "v1"}
    assert answer["dtypes"] == ["torch.float64"]


def test_shards_and_gguf_files_of_the_hub(opened: dict[str, Any]):
    assert opened["tiny/shards"]["logits"] == logits(tiny_model())[0, -1].tolist()
    answer = opened["tiny/ggufs{'gguf_file': 'tiny.gguf'}"]
    assert answer["source"] == {"kind": "hub", "id": "tiny/ggufs", "commit": COMMIT, "file": "tiny.gguf"}


def test_a_download_that_breaks_off_is_resumed(opened: dict[str, Any], hub: Hub):
    assert opened["tiny/breaks-off-once"]["logits"] == logits(tiny_model())[0, -1].tolist()
    path = f"/tiny/breaks-off-once/resolve/{COMMIT}/model.safetensors"
    assert [asked[:2] for asked in hub.asked].count(("GET", path)) == 2


def test_code_of_the_hub_does_not_run_unasked(opened: dict[str, Any], hub: Hub):
    assert opened["tiny/code"]["error"] == "ModelError"
    assert "trust_remote_code=True" in opened["tiny/code"]["message"]
    assert not (hub.repositories["tiny/code"].folder.parent / "mark").exists()
    assert not any(path.endswith("own.py") for _, path, _ in hub.asked)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("tiny/t5", UnsupportedModel, "model type 't5'"),
        ("tiny/untokenized", UnsupportedTokenizer, "has no tokenizer"),
        ("tiny/empty", ModelError, "has none of the weights files"),
        ("tiny/ggufs", ModelNotFound, "has no config.json. If it holds GGUF files"),
        ("tiny/lora", UnsupportedModel, "tiny/lora is an adapter of peft (LORA), not a model"),
        ("tiny/lora-beside", UnsupportedModel, "tiny/lora-beside is an adapter of peft (LORA), not a model"),
        ("tiny/gone", ModelNotFound, "There is no repository tiny/gone"),
        ("tiny/private", ModelNotFound, "`hf auth login`, or set HF_TOKEN"),
        ("tiny/gated", ModelNotFound, "is gated: ask for access"),
        ("tiny/fine{'revision': 'v2'}", ModelNotFound, "has no branch, tag or commit 'v2'"),
        ("no..such", ModelNotFound, "There is no repository no..such"),
        ("tiny/down", MachineError, "could not deliver tiny/down"),
        ("tiny/stalls", MachineError, "could not deliver tiny/stalls (ReadTimeout"),
        ("tiny/stalls-inside", MachineError, "could not deliver tiny/stalls-inside (ReadTimeout"),
        ("tiny/breaks-off", MachineError, "a download resumes where it broke off"),
    ],
)
def test_faults_of_the_hub(faults: dict[str, Any], name: str, kind: type[CausalTracingError], said: str):
    assert faults[name]["error"] == kind.__name__
    assert said in faults[name]["message"]
    assert faults[name]["seconds"] < 30  # with time-outs of one second; a stalled hub is not asked again and again


def test_a_model_that_cannot_be_traced_is_refused_before_its_weights_are_downloaded(faults: dict[str, Any], hub: Hub):
    assert faults["tiny/t5"]["error"] == "UnsupportedModel"
    assert {path.rpartition("/")[2] for _, path, _ in hub.asked if path.startswith("/tiny/t5/")} == {"config.json"}


def test_half_a_file_is_never_in_the_cache(faults: dict[str, Any], home: Path):
    assert faults["tiny/breaks-off"]["error"] == "MachineError"
    cache = home.with_name("faults") / "hub"
    assert list(cache.rglob("config.json"))  # this is where files would be
    assert not list(cache.rglob("model.safetensors"))


def test_without_a_network_what_was_downloaded_still_opens(opened: dict[str, Any], home: Path):
    nobody = Hub(endpoint="http://127.0.0.1:9")
    jobs: list[tuple[str, dict[str, Any]]] = [("tiny/fine", {}), ("tiny/shards", {}), ("tiny/other", {})]
    (fine, shards, other), _ = open_in_a_new_process(nobody, home, jobs)
    assert fine["source"] == opened["tiny/fine"]["source"]
    assert fine["logits"] == shards["logits"] == opened["tiny/fine"]["logits"]
    assert other["error"] == "MachineError"
    assert "Check the network" in other["message"]
    assert other["seconds"] < 20
    (fine, other), _ = open_in_a_new_process(nobody, home, [jobs[0], jobs[2]], HF_HUB_OFFLINE="1")
    assert fine["logits"] == opened["tiny/fine"]["logits"]
    assert other["error"] == "MachineError"


def test_opened_is_a_value(tmp_path: Path):
    tiny_folder(tmp_path)
    opened = open_model(tmp_path)
    assert isinstance(opened, Opened)
    with pytest.raises(AttributeError):
        opened.name = "other"  # pyright: ignore[reportAttributeAccessIssue]
