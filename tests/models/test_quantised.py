"""Quantised models against bare hooks on the same network, one prompt a forward; what is refused, and how."""

import json
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import causal_tracing as ct
from causal_tracing.errors import InvalidOption, UnsupportedModel
from causal_tracing.experiments.manifest import fingerprint
from causal_tracing.models.model import Model
from causal_tracing.models.quantised import REPEATING, beside_parameters, method_of, without_gradients
from quantised_by_hand import ANSWER, CLEAN, CLOSE, CORRUPT, FOIL, PAIR, at, difference, restored, tokens
from tiny import logits, tiny_folder, tiny_model, tiny_tokenizer

# Products of 4 bits are made for blocks of 64 numbers where a processor has instructions for bfloat16.
WIDER = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
KINDS: dict[str, dict[str, Any]] = {
    "8 bit": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
    "8 bit with outliers": {"load_in_8bit": True},
    "4 bit": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32},
    "4 bit nested": {
        "load_in_4bit": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
}
TRACED = ("8 bit", "4 bit", "4 bit nested")
POSITION, LAST = 3, 5


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """Without what bitsandbytes says at each product."""
    logger = logging.getLogger("bitsandbytes")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


needs_bitsandbytes = pytest.mark.usefixtures("_bitsandbytes")


@pytest.fixture
def _bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (the extra [test] has it)")


@cache
def plain(folder: Path) -> Path:
    tiny_folder(folder, **WIDER)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain(tmp_path_factory.getbasetemp() / "plain")


def quantised(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Any:
    config = BitsAndBytesConfig(**KINDS[kind])
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=dtype).eval()


@cache
def accepted(folder: Path, kind: str) -> Model:
    """One that tests leave as it is."""
    return ct.load(quantised(folder, kind), tiny_tokenizer())


def saved(network: Any, folder: Path) -> Path:
    network.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


# What is traced


@needs_bitsandbytes
@pytest.mark.parametrize("engine", ["auto", "replay"])
@pytest.mark.parametrize("kind", TRACED)
def test_cells_are_those_of_bare_hooks(folder: Path, kind: str, engine: str):
    model = accepted(folder, kind)
    network = model.network
    trace = ct.trace(model, PAIR, engine=engine, positions="each", progress=False)
    found = trace.effects.restoration.sel(metric="logit_diff", pair=trace.effects.pair[0])
    assert not trace.provenance["spot_checks"].get("rerun")
    sizes = []
    for component in ("resid_post", "attn_out", "mlp_out"):
        for layer in range(4):
            for position in (POSITION, LAST):
                want = restored(network, component, layer, position, slice(None))
                cell = found.sel(component=component, layer=layer).isel(position=position).item()
                assert cell == pytest.approx(want, abs=CLOSE), (component, layer, position)
                sizes.append(abs(want))
    assert sum(size > 50 * CLOSE for size in sizes) > 10


@needs_bitsandbytes
@pytest.mark.parametrize("kind", TRACED)
def test_heads_and_neurons_are_those_of_bare_hooks(folder: Path, kind: str):
    model = accepted(folder, kind)
    network = model.network
    trace = ct.trace(
        model, PAIR, components=["resid_post"], heads=["z", "q", "k", "v"], neurons=True, positions="each",
        layers=[0, 1], progress=False,
    )  # fmt: skip
    heads = trace.heads.restoration.sel(metric="logit_diff", pair=trace.heads.pair[0])
    neurons = trace.neurons.restoration.sel(metric="logit_diff", pair=trace.neurons.pair[0])
    sizes = []
    for layer in (0, 1):
        for component, count in {"z": 4, "q": 4, "k": 2, "v": 2}.items():
            for head in range(count):
                want = restored(network, component, layer, POSITION, slice(16 * head, 16 * head + 16))
                cell = heads.sel(component=component, layer=layer, head=head).isel(position=POSITION).item()
                assert cell == pytest.approx(want, abs=CLOSE), (component, layer, head)
                sizes.append(abs(want))
        for neuron in range(0, 128, 16):
            want = restored(network, "neurons", layer, LAST, slice(neuron, neuron + 1))
            cell = neurons.sel(layer=layer, neuron=neuron).item()  # by default at the last token alone
            assert cell == pytest.approx(want, abs=CLOSE), (layer, neuron)
            sizes.append(abs(want))
    assert sum(size > 50 * CLOSE for size in sizes) > 5


@needs_bitsandbytes
@pytest.mark.parametrize("kind", TRACED)
def test_a_folder_that_was_saved_quantised(folder: Path, kind: str, tmp_path: Path):
    network = quantised(folder, kind)
    model = ct.load(saved(network, tmp_path / "saved"), progress=False)
    assert model.source["quantised"] == f"bitsandbytes {kind[0]} bit"
    assert model.dtype == "float32"
    assert torch.equal(logits(model.network), logits(network))
    assert model.recipe is not None
    assert model.recipe.dtype is None


@needs_bitsandbytes
def test_what_is_not_quantised_stays_as_it_was_saved(folder: Path, tmp_path: Path):
    network = quantised(folder, "8 bit", torch.bfloat16)
    place = saved(network, tmp_path / "saved")
    model = ct.load(place, progress=False)
    assert model.dtype == "bfloat16"
    assert torch.equal(logits(model.network), logits(network))
    assert ct.load(place, dtype="bfloat16", progress=False).dtype == "bfloat16"
    with pytest.raises(
        InvalidOption,
        match=r"dtype='float32' does not apply to .*saved: its weights are quantised \(bitsandbytes 8 bit\), and what "
        "is not stays as it was saved, in bfloat16. Leave it out.",
    ):
        ct.load(place, dtype="float32", progress=False)


@needs_bitsandbytes
def test_a_run_is_gone_on_with_by_the_same_folder_and_no_other(folder: Path, tmp_path: Path):
    place = saved(quantised(folder, "4 bit nested"), tmp_path / "saved")
    out = tmp_path / "run"
    first = ct.run(ct.load(place, progress=False), [PAIR], out, progress=False)
    again = ct.run(ct.load(place, progress=False), [PAIR], out, progress=False)
    np.testing.assert_array_equal(first.effects.restoration, again.effects.restoration)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["8 bit", "4 bit", "4 bit nested"])
def test_scales_are_in_the_fingerprint(folder: Path, tmp_path: Path, kind: str):
    one = accepted(folder, kind)
    assert fingerprint(one) == fingerprint(ct.load(quantised(folder, kind), tiny_tokenizer()))
    other: Any = tiny_model("llama", **WIDER)
    with torch.no_grad():  # the same codes of a weight twice as large
        other.get_submodule("model.layers.1.mlp.up_proj").weight.mul_(2)
    doubled = quantised(saved(other, tmp_path / "doubled"), kind)
    assert fingerprint(one) != fingerprint(ct.load(doubled, tiny_tokenizer()))


def test_of_other_networks_the_fingerprint_is_of_parameters_alone():
    assert not [*beside_parameters(tiny_model())]


# Estimates


@needs_bitsandbytes
def test_estimates_of_8_bits_are_the_gradients_of_the_products(folder: Path):
    model = accepted(folder, "8 bit")
    network = model.network
    found = ct.attribute(model, PAIR, components=["resid_post"], verify=2, sample=1, progress=False)
    estimate = found.estimates["resid_post"].squeeze().sel(layer=1).isel(position=POSITION).item()
    seen: list[Tensor] = []

    def look(value: Tensor) -> Tensor:
        seen.append(value.detach().requires_grad_() if torch.is_grad_enabled() else value)
        return seen[-1]

    vocabulary = tiny_tokenizer().get_vocab()
    with at(network, "resid_post", 1, look):
        difference(network, CLEAN)
        last = network(input_ids=tokens(CORRUPT), use_cache=False).logits[0, -1]
        (last[vocabulary[ANSWER]] - last[vocabulary[FOIL]]).backward()
    slope = seen[1].grad
    assert slope is not None
    want = ((seen[0] - seen[1].detach()) * slope)[0, POSITION].sum().item()
    assert abs(want) > 50 * CLOSE
    assert estimate == pytest.approx(want, abs=CLOSE)


@needs_bitsandbytes
def test_estimates_of_4_bits_where_gradients_pass_and_refused_where_not(folder: Path):
    from bitsandbytes.functional import has_avx512bf16

    model = accepted(folder, "4 bit")
    if not has_avx512bf16():
        assert without_gradients(model.network) is None
        return
    with pytest.raises(
        UnsupportedModel,
        match=r"has no gradients here: none pass its quantised weights \(bitsandbytes 4 bit\), such as those of "
        r"model.layers.0.self_attn.q_proj \(Linear4bit\). Use trace\(\), which needs none",
    ):
        ct.attribute(model, PAIR, components=["resid_post"], progress=False)


class Product(nn.Linear):
    """As a package may write it: this share of its gradients passes."""

    passing = 1.0

    def forward(self, input: Tensor) -> Tensor:
        whole = super().forward(input)
        return self.passing * whole + ((1 - self.passing) * whole).detach()


class Silent(Product):
    passing = 0.0


class Wrong(Product):
    passing = 0.5


@pytest.mark.parametrize(("kind", "found"), [(Product, None), (Silent, "0 (Silent)"), (Wrong, "0 (Wrong)")])
def test_a_product_without_gradients_is_found(kind: type[Product], found: str | None):
    network: Any = nn.Sequential(kind(8, 8))
    network.dtype = torch.float32
    network.get_input_embeddings = lambda: SimpleNamespace(weight=torch.zeros(1))
    assert without_gradients(network) == found


# What is refused


@needs_bitsandbytes
def test_outliers_told_by_the_batch_are_refused_by_name(folder: Path, tmp_path: Path):
    network = quantised(folder, "8 bit with outliers")
    for given in ((network, tiny_tokenizer()), (saved(network, tmp_path / "saved"),)):
        with pytest.raises(
            UnsupportedModel,
            match=r"cannot be traced: what it makes of a prompt depends on what is run beside it \(a run alone = the "
            r"run beside others: measured 0.\d+, bound 0.0001\). Its 8-bit layers tell outliers over all tokens of a "
            r"batch, later ones included \(llm_int8_threshold=6\). Load it with BitsAndBytesConfig\(load_in_8bit=True, "
            r"llm_int8_threshold=0.0\), or set that to 0.0 in the quantization_config of its config.json",
        ):
            ct.load(*given, progress=False)


@needs_bitsandbytes
def test_what_the_refusal_advises_works(folder: Path, tmp_path: Path):
    place = saved(quantised(folder, "8 bit with outliers"), tmp_path / "saved")
    config = json.loads((place / "config.json").read_text())
    config["quantization_config"]["llm_int8_threshold"] = 0.0
    (place / "config.json").write_text(json.dumps(config))
    assert torch.equal(logits(ct.load(place, progress=False).network), logits(quantised(folder, "8 bit")))


@needs_bitsandbytes
def test_the_refusal_is_true(folder: Path):
    """By bare forwards: with outliers a prompt's logits change with what is beside it and behind it, without not."""
    for kind, changes in (("8 bit with outliers", True), ("8 bit", False)):
        network = quantised(folder, kind)
        rows = torch.randint(4, 97, (8, 12), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            alone = torch.cat([network(row[None]).logits for row in rows])
            beside, before = network(rows).logits, torch.cat([network(row[None, :8]).logits for row in rows])
        both = ((alone, beside), (alone[:, :8], before))
        apart = [(one - other).abs().max() / alone.abs().max() for one, other in both]
        assert all(each > 1e-2 for each in apart) if changes else all(each < 1e-5 for each in apart), kind


@pytest.mark.parametrize(
    ("method", "config", "said"),
    [
        ("gptq", {"bits": 4}, "Loading a GPTQ quantized model requires optimum"),
        ("aqlm", {}, "Using `aqlm` quantization requires AQLM"),
        ("made-up", {}, "the installed transformers does not know this method"),
    ],
)
def test_a_method_whose_package_is_absent_is_named(tmp_path: Path, method: str, config: dict[str, Any], said: str):
    tiny_folder(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    whole["quantization_config"] = {"quant_method": method} | config
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(
        UnsupportedModel,
        match=rf"The weights of .* are quantised \({method}\), and cannot be read here: .*{said}.*\. Install "
        "(what is named there|a version that does), or give the same model without quantisation.",
    ):
        ct.load(tmp_path, progress=False)


def test_a_method_is_told_by_the_configuration():
    assert method_of(SimpleNamespace()) == ""
    assert method_of(SimpleNamespace(quantization_config={"quant_method": "awq", "bits": 4})) == "awq"
    assert method_of(SimpleNamespace(quantization_config=BitsAndBytesConfig(load_in_4bit=True))) == "bitsandbytes 4 bit"


@needs_bitsandbytes
def test_what_each_product_says_is_said_once(folder: Path):
    network = quantised(folder, "8 bit")
    logger, said = logging.getLogger(REPEATING), []

    class Noted(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Noted()
    before, level = [*logger.filters], logging.getLogger("bitsandbytes").level
    logging.getLogger("bitsandbytes").setLevel(logging.WARNING)
    logger.filters.clear()
    logger.addHandler(handler)
    try:
        ct.load(network, tiny_tokenizer())
        ct.load(network, tiny_tokenizer())
    finally:
        logger.removeHandler(handler)
        logger.filters[:] = before
        logging.getLogger("bitsandbytes").setLevel(level)
    assert said == ["MatMul8bitLt: inputs will be cast from torch.float32 to float16 during quantization"]
