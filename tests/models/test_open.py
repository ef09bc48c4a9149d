"""Opening models from folders and files: what they become, and a clear error for everything that goes wrong."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
)

from causal_tracing.errors import (
    InvalidOption,
    ModelError,
    ModelNotFound,
    UnsupportedModel,
    UnsupportedTokenizer,
)
from causal_tracing.experiments.load import load
from causal_tracing.models import place
from causal_tracing.models.open import Opened, open_model
from model_types.recipes import build
from opening import refused, with_code
from tiny import SHAPE, logits, tiny_folder, tiny_gguf, tiny_model, tiny_tokenizer

EXACT: dict[str, Any] = {"rtol": 0, "atol": 0}


def is_at_rest(network: torch.nn.Module) -> bool:
    gradients = any(parameter.requires_grad for parameter in network.parameters())
    return not gradients and not any(module.training for module in network.modules())


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


def test_load_checks_the_anatomy(tmp_path: Path):
    tiny_folder(tmp_path)
    model = load(tmp_path)
    assert model.num_layers == 4
    assert model.name == str(tmp_path)
    assert model.source["kind"] == "folder"
    assert "resid_post" in model.anatomy.components


def test_opened_is_a_value(tmp_path: Path):
    tiny_folder(tmp_path)
    opened = open_model(tmp_path)
    assert isinstance(opened, Opened)
    with pytest.raises(AttributeError):
        opened.name = "other"  # pyright: ignore[reportAttributeAccessIssue]
