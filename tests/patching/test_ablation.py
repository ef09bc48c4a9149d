"""What is written at a site, where it is not the other run's activation: against bare hooks, on both engines."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

import causal_tracing as ct
from bare_hooks import first, hooked, put
from causal_tracing.cli.app import app
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.errors import InvalidOption, InvalidPair
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model
from joint import WORDS, tiny
from tiny import tiny_folder

CLEAN, CORRUPT = " w11 w12 w13 w14", " w11 w42 w13 w14"
PAIR = ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=" w7", foil=" w8")
POOL = [" w21 w22 w23 w24", " w31 w32 w33 w34", " w41 w44 w43 w45", " w11 w51 w52 w53", " w61 w62 w63 w64"]
LAYERS, LENGTH, WIDTH, HEADS, D_HEAD = 4, 4, 32, 4, 8
PARTS = {"resid_post": "", "attn_out": "self_attn", "mlp_out": "mlp"}
RANDOM = torch.Generator().manual_seed(1)
TENSORS = {(name, layer): torch.randn(WIDTH, generator=RANDOM) for name in PARTS for layer in range(LAYERS)}
BASES = {(name, layer): torch.randn(2, WIDTH, generator=RANDOM) for name in PARTS for layer in range(LAYERS)}
ABSOLUTE = 2e-5  # logits, float32


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


# By hand: nothing of the package.


def logit_diff(network: Any, text: str, hooks: Sequence[Any] = ()) -> float:
    with hooked(hooks), torch.no_grad():
        logits = network(torch.tensor([WORDS(text)["input_ids"]])).logits[0, -1]
    answer, foil = (WORDS(token)["input_ids"][0] for token in (" w7", " w8"))
    return (logits[answer] - logits[foil]).item()


def module(network: Any, component: str, layer: int) -> Any:
    return network.model.layers[layer].get_submodule(PARTS[component])


@cache
def there(network: Any, text: str, component: str, layer: int) -> Tensor:
    seen: list[Tensor] = []
    where = module(network, component, layer)
    logit_diff(network, text, [(where, lambda _, __, output: seen.append(first(output)[0].clone()))])
    return seen[0]


def inside(here: Tensor, donor: Tensor, basis: Tensor) -> Tensor:
    return here + (basis.T @ torch.linalg.lstsq(basis.T, (donor - here).T).solution).T


Wanted = Callable[[Any, str, int, Tensor, Tensor], list[Tensor]]
KINDS: dict[str, tuple[ct.Write, Wanted]] = {
    "zero": (ct.Write("zero"), lambda *_: [torch.zeros(LENGTH, WIDTH)]),
    "mean": (
        ct.Write("mean", prompts=[*POOL, " w1 w2"]),
        lambda network, name, layer, *_: [torch.stack([there(network, text, name, layer) for text in POOL]).mean(0)],
    ),
    "resample": (
        ct.Write("resample", prompts=POOL, draws=99),
        lambda network, name, layer, *_: [there(network, text, name, layer) for text in POOL],
    ),
    "given": (
        ct.Write("given", tensors=TENSORS),
        lambda _, name, layer, *__: [TENSORS[name, layer].expand(LENGTH, WIDTH)],
    ),
    "subspace": (
        ct.Write("subspace", tensors=BASES),
        lambda _, name, layer, here, donor: [inside(here, donor, BASES[name, layer])],
    ),
    "part": (ct.Write(alpha=0.3), lambda _, __, ___, here, donor: [0.7 * here + 0.3 * donor]),
    "part of zero": (ct.Write("zero", alpha=0.5), lambda _, __, ___, here, ____: [0.5 * here]),
}


@cache
def by_hand(network: Any, kind: str, name: str, layer: int, base: str, donor: str) -> list[np.ndarray]:
    """At each position what the base run gives with each value that is wanted there; the same for both engines."""
    here, other = (there(network, text, name, layer) for text in (base, donor))
    values, where = KINDS[kind][1](network, name, layer, here, other), module(network, name, layer)
    return [
        np.array([logit_diff(network, base, [(where, put(value, position))]) for value in values])
        for position in range(LENGTH)
    ]


@pytest.mark.parametrize("engine", ["packed", "replay"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_equals_bare_hooks(model, kind, engine):
    network, largest = model.network, 0.0
    found = ct.trace(model, PAIR, write=KINDS[kind][0], engine=engine).effects.sel(metric="logit_diff", pair="pair-0")
    directions = {"restoration": (CORRUPT, CLEAN), "disruption": (CLEAN, CORRUPT)}
    ablates = kind in ("zero", "mean", "resample", "part of zero")
    assert ("restoration" in found) == (not ablates)
    for name, layer, direction in product(PARTS, range(LAYERS), ["disruption"] if ablates else directions):
        base, donor = directions[direction]
        before, sign = logit_diff(network, base), 1 if direction == "restoration" else -1
        for position, after in enumerate(by_hand(network, kind, name, layer, base, donor)):
            cell = found.sel(component=name, layer=layer, position=position)
            expected = sign * (after - before)
            assert_allclose(cell[direction].item(), expected.mean(), rtol=0, atol=ABSOLUTE, err_msg=f"{name} {layer}")
            if len(after) > 1:
                deviation = cell[f"{direction}_deviation"].item()
                assert deviation == pytest.approx(expected.std(ddof=1), abs=ABSOLUTE)
            largest = max(largest, abs(expected.mean()))
    assert largest > 0.1
    total = logit_diff(network, CLEAN) - logit_diff(network, CORRUPT)
    assert found.total_effect.item() == pytest.approx(total, abs=ABSOLUTE)


@pytest.mark.parametrize("engine", ["packed", "replay"])
def test_heads_and_neurons_are_ablated_alone(model, engine):
    tensor = torch.randn(HEADS, D_HEAD, generator=torch.Generator().manual_seed(2))
    tensors = {("resid_post", 2): torch.zeros(WIDTH), ("z", 2): tensor, ("neurons", 2): torch.full((64, 1), 0.5)}
    options: dict[str, Any] = {"layers": [2], "components": ["resid_post"], "engine": engine}
    options |= {"heads": True, "neurons": True, "neuron_positions": [1]}
    zeroed = ct.trace(model, PAIR, write="zero", **options)
    given = ct.trace(model, PAIR, write=ct.Write("given", tensors=tensors), directions=["disruption"], **options)
    layer = model.network.model.layers[2]
    for part, count, size, path in (("head", HEADS, D_HEAD, "self_attn.o_proj"), ("neuron", 64, 1, "mlp.down_proj")):
        for trace, values in ((zeroed, torch.zeros(count, size)), (given, tensors["z" if size > 1 else "neurons", 2])):
            table = trace.heads if part == "head" else trace.neurons
            for unit in range(0, count, 1 if part == "head" else 9):

                def write(_: Any, args: Any, unit: int = unit, size: int = size, values: Tensor = values) -> Any:
                    changed = args[0].clone()
                    changed[0, 1, unit * size : (unit + 1) * size] = values[unit]
                    return (changed, *args[1:])

                handle = layer.get_submodule(path).register_forward_pre_hook(write)
                expected = logit_diff(model.network, CLEAN)
                handle.remove()
                at = {"metric": "logit_diff", "pair": "pair-0", "layer": 2, "position": 1, part: unit}
                lost = table.disruption.sel(at).item()
                assert lost == pytest.approx(logit_diff(model.network, CLEAN) - expected, abs=ABSOLUTE)


def test_a_whole_subspace_is_the_donor_and_nothing_of_it_is_nothing(model):
    whole = {place: torch.eye(WIDTH) for place in TENSORS}
    plain, full = (
        ct.trace(model, PAIR, write=write).effects for write in ("donor", ct.Write("subspace", tensors=whole))
    )
    for direction in ("restoration", "disruption"):
        assert_allclose(full[direction], plain[direction], rtol=0, atol=1e-4)
    none = ct.trace(model, PAIR, write=ct.Write(alpha=0.0)).effects
    assert (none.restoration.sel(metric="logit_diff") == 0).all()
    assert (none.status.sel(metric="logit_diff") == "structural_zero").all()


def test_half_of_a_cut_is_no_cut(model):
    half, whole = (ct.trace(model, PAIR, write=ct.Write(alpha=alpha)).effects for alpha in (0.5, 1.0))
    at = {"metric": "logit_diff", "pair": "pair-0", "component": "resid_post", "layer": LAYERS - 1, "position": 3}
    assert whole.status.sel(at).item() == "cut"
    assert half.status.sel(at).item() == "ok"


def test_the_drawn_donors_depend_on_the_seed_and_the_pair_alone(model):
    def lost(pairs: Any, seed: int) -> np.ndarray:
        write = ct.Write("resample", prompts=POOL, draws=2, seed=seed)
        found = ct.trace(model, pairs, write=write, spot_checks=0).effects
        return found.disruption.sel(metric="logit_diff").isel(pair=-1).values

    other = ct.Pair(clean=" w11 w12 w15 w14", corrupt=CORRUPT, answer=" w7", foil=" w8", id="other")
    alone = lost(PAIR, 0)
    assert_allclose(lost([other, PAIR], 0), alone, rtol=0, atol=ABSOLUTE)
    apart = [np.nanmax(abs(lost(PAIR, seed) - alone)) for seed in (1, 2, 3)]
    assert max(apart) > 0.05


def test_the_clean_prompt_is_not_drawn_for_itself(model):
    write = ct.Write("resample", prompts=[CLEAN, POOL[0]], draws=2)
    only = ct.Write("resample", prompts=[POOL[0]], draws=2)
    both = [ct.trace(model, PAIR, write=each).effects.disruption for each in (write, only)]
    assert_allclose(*both, rtol=0, atol=ABSOLUTE)
    with pytest.raises(InvalidPair, match="no reference prompt beside it has as many"):
        ct.trace(model, PAIR, write=ct.Write("resample", prompts=[CLEAN]))


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"write": "nought"}, InvalidOption, "There is no kind of write 'nought'"),
    ({"write": "mean"}, InvalidOption, "write='mean' needs prompts="),
    ({"write": "given"}, InvalidOption, "write='given' needs tensors="),
    ({"write": "zero", "directions": ["restoration"]}, InvalidOption, "only disruption is measured"),
    ({"write": "zero", "sever": ["mlp_out"]}, InvalidOption, "only disruption is measured"),
    ({"write": "zero", "noise": ct.Noise()}, InvalidOption, "ask for one of them"),
    ({"write": "zero", "preset": "rome"}, InvalidOption, "ask for one of them"),
    (
        {"write": ct.Write("given", tensors={("resid_post", 1): torch.zeros(WIDTH)})},
        InvalidOption,
        r"tensors= has nothing for \('resid_post', 0\), .*, …\. Give one for every",
    ),
    ({"write": ct.Write("mean", prompts=[" w1 w2", " w1"])}, InvalidPair, "as many .they have 1, 2."),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_writes_are_said(model, options, error, message):
    with pytest.raises(error, match=message):
        ct.trace(model, PAIR, **options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "zero", "prompts": POOL}, "prompts= goes with mean and resample; what is written is 'zero'"),
        ({"kind": "mean", "prompts": POOL, "tensors": TENSORS}, "tensors= goes with given and subspace"),
        ({"alpha": float("nan")}, "alpha= must be a finite number"),
        ({"kind": "resample", "prompts": POOL, "draws": 0}, "The number of draws must be a whole number of at least 1"),
        ({"kind": "mean", "prompts": [""]}, "prompts= must hold texts"),
    ],
)
def test_writes_that_cannot_be_meant(fields, message):
    with pytest.raises(InvalidOption, match=message):
        ct.Write(**fields)


PLACE = ("resid_post", 2)


@pytest.mark.parametrize(
    ("kind", "tensors", "message"),
    [
        ("given", {PLACE: "zeros"}, "has no numbers for"),
        ("given", {PLACE: torch.full((WIDTH,), torch.inf)}, "must be a tensor of finite numbers"),
        ("subspace", {PLACE: torch.ones(WIDTH)}, r"needs rows that are linearly independent, \[rank, size\]"),
        ("subspace", {PLACE: torch.ones(2, WIDTH)}, "are \\[2, 32\\] and are not"),  # else a direction of no meaning
    ],
)
def test_tensors_that_cannot_be_meant(kind, tensors, message):
    with pytest.raises(InvalidOption, match=message):
        ct.Write(kind, tensors=tensors)


def test_a_tensor_for_heads_has_a_row_for_each(model):
    tensors = {("resid_post", 2): torch.zeros(WIDTH), ("z", 2): torch.zeros(HEADS - 1, D_HEAD)}
    with pytest.raises(InvalidOption, match=r"tensor for z of layer 2 must have 4 rows, .* shape \[3, 8\]"):
        ct.trace(
            model, PAIR, write=ct.Write("given", tensors=tensors), components=["resid_post"], layers=[2], heads=True
        )


@pytest.mark.parametrize("engine", ["packed", "replay"])
def test_one_world_may_read_from_several_donors(model, engine):
    """resid_post of layer 1 from one prompt at one token, and from another prompt at another."""
    base, *others = (Run(tuple(WORDS(text)["input_ids"])) for text in (CLEAN, *POOL[:2]))
    edits = tuple(Edit(Site("resid_post", 1, p), From(run, p)) for p, run in zip((1, 2), others, strict=True))
    found = evaluate(model, [World(base, edits, (3,))], lambda logits, _: logits[:, 0], engine=engine).values[0]
    where = module(model.network, "resid_post", 1)
    hooks = [
        (where, put(there(model.network, text, "resid_post", 1), p)) for p, text in zip((1, 2), POOL, strict=False)
    ]
    answer, foil = (WORDS(token)["input_ids"][0] for token in (" w7", " w8"))
    expected = logit_diff(model.network, CLEAN, hooks)
    assert found[answer] - found[foil] == pytest.approx(expected, abs=ABSOLUTE)
    assert abs(expected - logit_diff(model.network, CLEAN)) > 0.05


def full(component: str, *shape: int) -> dict[tuple[str, int], Tensor]:
    """A tensor of this shape for a component of layer 2."""
    return {(component, 2): torch.eye(*shape) if len(shape) == 2 else torch.zeros(shape)}


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (("given", full("resid_post", WIDTH + 1)), {}, r"resid_post of layer 2 must have the shape \[32\]: .*\[33\]"),
        (("given", full("resid_post", 1, WIDTH)), {}, r"the shape \[32\]: a site there holds 32 .*\[1, 32\]"),
        (("subspace", full("resid_post", 2, WIDTH - 1)), {}, r"must have the shape \[2, 32\]: .* the shape \[2, 31\]"),
        (("given", full("z", HEADS, D_HEAD + 1)), {"heads": ["z"]}, r"for z of layer 2 must have the shape \[4, 8\]"),
        (("subspace", full("z", 2, WIDTH)), {"heads": ["z"]}, r"for z of layer 2 must have the shape \[2, 8\]: a site"),
        (("given", full("neurons", 64)), {"neurons": True}, r"for neurons of layer 2 must have the shape \[64, 1\]"),
        (
            ("given", {("resid_post", layer): torch.zeros(WIDTH) for layer in (2, 3)}),
            {"window": 3},
            r"nothing for \('resid_post', 1\)",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_said_before_anything_is_traced(model, monkeypatch, write, options, message):
    monkeypatch.setattr("causal_tracing.experiments.trace.measured", None)
    kind, tensors = write
    whole = {("resid_post", 2): torch.eye(1, WIDTH) if kind == "subspace" else torch.zeros(WIDTH)} | tensors
    with pytest.raises(InvalidOption, match=message):
        ct.trace(model, PAIR, components=["resid_post"], layers=[2], write=ct.Write(kind, tensors=whole), **options)


def test_a_pattern_that_is_given_is_of_so_many_tokens(model, tmp_path):
    """Of two pairs, the one whose prompts have other lengths fails by itself."""
    longer = replace(PAIR, clean=f"{CLEAN} w9", corrupt=f"{CORRUPT} w9", id="longer")
    tensors = {("resid_post", 2): torch.zeros(WIDTH), ("pattern", 2): torch.zeros(HEADS, LENGTH)}
    options: dict[str, Any] = {"components": ["resid_post"], "layers": [2], "heads": ["pattern"]}
    write = ct.Write("given", tensors=tensors)
    found = ct.run(model, [longer, PAIR], tmp_path / "run", write=write, **options)
    assert found.effects.sizes["pair"] == 1
    assert "is for 4 tokens, and what is run has 5" in found.provenance["failed"]["longer"]
    with pytest.raises(InvalidPair, match="pair 'longer': the tensor for pattern of layer 2 is for 4 tokens"):
        ct.trace(model, [longer, PAIR], write=write, **options)


def test_the_words_say_what_was_written_and_claim_nothing_of_the_usual_picture(model, tmp_path):
    said = {name: ct.trace(model, PAIR, write=write) for name, (write, _) in KINDS.items()}
    assert "An ablation: zeros are written at each site of the clean run." in said["zero"].summary()
    assert "the mean activation of the reference prompts (6 in all)" in said["mean"].summary()
    assert "at most 5 of them in turn" in said["resample"].summary()
    assert "Not the other run's activation but a given tensor" in said["given"].summary()
    assert "inside a given subspace" in said["subspace"].summary()
    assert "mixed with what is there: 0.3 of it is new" in said["part"].summary()
    for trace in said.values():
        assert "the difference rides" not in trace.summary()
        assert "bottleneck" not in trace.summary()
    plain = ct.trace(model, PAIR)
    assert "the difference rides" in plain.summary()
    assert "a bottleneck" in plain.summary()
    said["zero"].save(tmp_path / "zero")
    assert ct.open_trace(tmp_path / "zero").summary() == said["zero"].summary()
    said["zero"].to_html(tmp_path / "zero.html")
    page = (tmp_path / "zero.html").read_text(encoding="utf-8")
    assert "zeros are written at one site of the clean run" in page
    assert "the corrupt activation is put into the clean run" not in page


def test_the_command_line_writes_them_too_and_its_record_makes_it_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    prompts = {"--clean": " Rome Paris Mary", "--corrupt": " Rome John Mary", "--answer": " the", "--foil": " of"}
    base = ["trace", "--model", "model", *(word for option in prompts.items() for word in option), "--json"]
    (tmp_path / "reference.txt").write_text(" city of is\n in to gave\n\n drink store went\n", encoding="utf-8")
    tensors = {f"{name}.{layer}": tensor for (name, layer), tensor in TENSORS.items()}
    save_file(tensors, tmp_path / "tensors.safetensors")
    for options in (
        ["--write", "zero"],
        ["--write", "mean", "--reference", "reference.txt", "--alpha", "0.5"],
        ["--write", "resample", "--reference", "reference.txt", "--draws", "2", "--draw-seed", "3"],
        ["--write", "given", "--tensors", "tensors.safetensors"],
    ):
        found = json.loads(CliRunner().invoke(app, [*base, *options]).stdout)
        made = found["provenance"]["options"]["write"]
        assert made["kind"] == options[1]
        assert found["provenance"]["command"].endswith("--seed 0 --spot-checks 8")
        assert " ".join(options[:2]) in found["provenance"]["command"]
        assert all(word in found["provenance"]["command"] for word in options)
        assert "effects" in found
    assert len(made["tensors"]["resid_post.0"]) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--write", "mean", "--reference", "none.txt"], "--reference none.txt cannot be read"),
        (["--write", "given", "--tensors", "none.safetensors"], "--tensors none.safetensors cannot be read"),
        (["--write", "given", "--tensors", "odd.safetensors"], "'resid_post' names no place"),
        (["--write", "zero", "--draws", "3"], "say how noise or a reference is drawn"),
    ],
)
def test_bad_files_are_said(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    save_file({"resid_post": torch.zeros(2)}, tmp_path / "odd.safetensors")
    done = CliRunner().invoke(
        app, ["trace", "--model", "nowhere", "--clean", "a", "--corrupt", "b", "--answer", " c", *options]
    )
    assert message in str(done.exception)


def test_law_31_a_pairs_spread_over_draws_does_not_depend_on_its_neighbours(model: Model):
    """One pair has five reference prompts of its length, the other has one."""
    shorter = ct.Pair(clean=" w11 w12 w13", corrupt=" w11 w42 w13", answer=" w7", foil=" w8")
    write = ct.Write("resample", prompts=[*POOL, " w1 w2 w3"], draws=4)
    options = {"write": write, "positions": ["last"], "spot_checks": 0}
    alone, beside = (ct.trace(model, pairs, **options).effects for pairs in ([PAIR], [PAIR, shorter]))
    spread = alone.disruption_deviation.isel(pair=0)
    assert (spread.sel(metric="logit_diff") > 0).any()
    assert_allclose(beside.disruption_deviation.isel(pair=0), spread, rtol=0, atol=ABSOLUTE)
    assert beside.disruption_deviation.isel(pair=1).isnull().all()
