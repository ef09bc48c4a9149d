"""The engine on a GPU: the laws of patching, both engines against bare torch hooks, memory, and the CPU's numbers.

From a source checkout, with torch, transformers and pytest installed, and without what the other tests need:

    PYTHONPATH=src:tests python -m pytest --noconftest -o addopts="" --import-mode=importlib -p no:cacheprovider \
        -W default tests/test_cuda.py

CAUSAL_TRACING_TEST_DEVICE names another device: with "cpu" all runs but what needs a GPU's own memory. Bounds are those
that the package itself decides by (`engine/checks/bounds.py`), in shares of the largest logit.
"""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import causal_tracing
from causal_tracing.engine.checks.agreement import choose
from causal_tracing.engine.checks.bounds import ONE_FORWARD, PATTERN, TWO_FORWARDS
from causal_tracing.engine.checks.check import accept, prove
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.engine.network import NetworkBackend
from causal_tracing.errors import OutOfMemory
from causal_tracing.interventions.edits import Edit, From, Given, Mean, Plus, Run, Source, Subspace, World, Zero
from causal_tracing.interventions.sites import MEDIATORS, RESIDUAL, Site
from causal_tracing.models.model import Model
from causal_tracing.testing import ToyTokenizer
from families import FAMILIES, build

DEVICE = torch.device(os.environ.get("CAUSAL_TRACING_TEST_DEVICE", "cuda"))
if DEVICE.type == "cuda" and DEVICE.index is None:
    DEVICE = torch.device("cuda", 0)  # limits of memory are set by number
NO_DEVICE = DEVICE.type == "cuda" and not torch.cuda.is_available()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(NO_DEVICE, reason="no CUDA device")]
needs_gpu_memory = pytest.mark.skipif(DEVICE.type != "cuda", reason="the CPU's memory has no limit to set")

BASE = (5, 17, 42, 11, 60, 33, 8, 71, 90)
DONOR = (5, 17, 42, 13, 60, 29, 8, 71, 90)
LENGTH, DIFFERING, LAST = 9, (3, 5), 8
EVERYWHERE = tuple(range(LENGTH))
SOME_LAYERS = (0, 2, 3)  # the first, an inner one, the last
SEEN = ("q", "k", "v", "pattern")
STREAM = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
MIXTURES = ("mixtral",)
# Of random experts in half types rounding sends tokens to others, which is no rounding any more: float32 alone.
CASES = [
    (name, attention, dtype)
    for name, attention, dtype in product(
        ("llama", "gpt2", "gemma3_text", *MIXTURES), ("sdpa", "eager"), ("float32", "bfloat16", "float16")
    )
    if name not in MIXTURES or dtype == "float32"
]
IDS = ["-".join(case) for case in CASES]
# Both runs of one size are equal up to one forward's rounding; packed tokens are products of another size.
SAME_SIZE = {"replay": ONE_FORWARD, "packed": TWO_FORWARDS}


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """Products in float32 as such: some images of GPU machines let them be made of TF32, with ten bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=CASES, ids=IDS)
def model(request: pytest.FixtureRequest) -> Model:
    return tiny(*request.param)


@pytest.fixture(params=["packed", "replay"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@cache
def tiny(name: str, attention: str = "sdpa", dtype: str = "float32", device: torch.device = DEVICE) -> Model:
    """A tiny random model on the device, all its parts proved there: the same weights wherever it is."""
    family = next(family for family in FAMILIES if family.name == name)
    network: Any = build(family, attention, dtype=getattr(torch, dtype))
    accepted = accept(network.to(device), ToyTokenizer([f"w{n}" for n in range(97)]), name=name)
    return prove(accepted, accepted.anatomy.mediators)[0]


def patch(site: Site, source: Source | None = None, *, base: tuple[int, ...] = BASE, readout: Any = (LAST,)) -> World:
    """One edit; of the donor's own activation unless another source is given."""
    return World(Run(base), (Edit(site, source or From(Run(DONOR), site.position)),), readout)


def values(model: Model, worlds: Sequence[World], engine: str, **options: Any) -> np.ndarray:
    """[world, readout · vocab]: all the logits that are read, every world run."""
    options = {"prune": False, **options}
    return evaluate(model, worlds, lambda logits, _: logits.float().flatten(1), engine=engine, **options).values


def components(model: Model) -> tuple[str, ...]:
    return (*model.anatomy.components, *model.anatomy.mediators)


def share(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, in shares of the largest logit; what is not a number is infinitely far."""
    apart = np.abs(found - expected).max() / np.abs(expected).max()
    return float(np.nan_to_num(apart, nan=np.inf))


# Bare hooks, written here: nothing of the package patches.


@dataclass(frozen=True)
class Names:
    """The modules of a family by hand; attention's and the MLP's are those whose outputs are added to the stream.

    `middle` is what reads the stream between the two: a write into its input is one into the stream itself.
    """

    layers: str = "model.layers"
    attn: str = "self_attn"
    middle: str = "post_attention_layernorm"
    mlp: str = "mlp"
    z: str = "self_attn.o_proj"
    neurons: str = "mlp.down_proj"


NAMES = {
    "llama": Names(),
    "mixtral": Names(neurons=""),
    "gemma3_text": Names(
        attn="post_attention_layernorm", middle="pre_feedforward_layernorm", mlp="post_feedforward_layernorm"
    ),
    "gpt2": Names(
        layers="transformer.h", attn="attn", middle="ln_2", z="attn.c_proj", neurons="mlp.c_proj"
    ),
}  # fmt: skip
SIDE_BY_SIDE = {"z": 4, "neurons": 64}  # heads and neurons that lie in one axis
Touch = Callable[[Tensor], None]  # is shown [row, token, ...], and may write there in place


def bare(network: Any, tokens: tuple[int, ...], rows: int = 1) -> np.ndarray:
    """[row, position, vocab]."""
    with torch.no_grad():
        return (
            network(input_ids=torch.tensor([tokens] * rows, device=DEVICE), use_cache=False)
            .logits.double()
            .cpu()
            .numpy()
        )


@contextmanager
def touched(network: Any, names: Names, component: str, layer: int, touch: Touch) -> Iterator[None]:
    """While the context is open, `touch` is shown what passes the place."""
    if component in SEEN:
        with attention_by_hand(network, component, layer, touch):
            yield
        return
    block = network.get_submodule(names.layers)[layer]
    outputs = {"attn_out": names.attn, "mlp_out": names.mlp, "resid_post": ""}
    inputs = {"resid_pre": "", "resid_mid": names.middle, "z": names.z, "neurons": names.neurons}

    def on_output(_: nn.Module, __: Any, output: Any) -> None:
        touch(output[0] if isinstance(output, tuple) else output)

    def on_input(_: nn.Module, args: Any, kwargs: Any) -> None:
        touch(args[0] if args else kwargs["hidden_states"])

    if component in outputs:
        handle = block.get_submodule(outputs[component]).register_forward_hook(on_output)
    else:
        handle = block.get_submodule(inputs[component]).register_forward_pre_hook(on_input, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def attention_by_hand(network: Any, component: str, layer: int, touch: Touch) -> Iterator[None]:
    """Softmax attention by algebra, one of whose tensors in one layer is shown to `touch`."""

    def shown(name: str, at: int, value: Tensor) -> Tensor:
        if (name, at) != (component, layer):
            return value
        value = value.clone()
        touch(value.transpose(1, 2))
        return value

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        at, length = module.layer_idx, query.shape[2]
        query, key, value = (shown(name, at, each) for name, each in (("q", query), ("k", key), ("v", value)))
        repeats = query.shape[1] // key.shape[1]
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        scores = query @ key.repeat_interleave(repeats, 1).transpose(2, 3) * scale
        seen = torch.ones(length, length, dtype=torch.bool, device=DEVICE).tril() if mask is None else mask
        pattern = scores.float().masked_fill(~seen, -torch.inf).softmax(-1).to(query.dtype)
        return (shown("pattern", at, pattern) @ value.repeat_interleave(repeats, 1)).transpose(1, 2), None

    AttentionInterface.register("by_hand", attend)
    AttentionMaskInterface.register("by_hand", sdpa_mask)
    before = network.config._attn_implementation
    network.set_attn_implementation("by_hand")
    try:
        yield
    finally:
        network.set_attn_implementation(before)


def patched_by_hand(model: Model, component: str, layer: int, part: int | None = None) -> np.ndarray:
    """[position patched, vocab] at the last position: row i of one batch gets the donor's numbers at position i."""
    names, seen = NAMES[model.name], []

    def of_part(value: Tensor) -> Tensor:
        """A view of one head or neuron [row, token, size]."""
        if part is None:
            return value
        if component in SIDE_BY_SIDE:
            value = value.unflatten(-1, (SIDE_BY_SIDE[component], -1))
        return value[:, :, part]

    def write(value: Tensor) -> None:
        for row in EVERYWHERE:
            of_part(value)[row, row] = of_part(seen[0])[0, row]

    with touched(model.network, names, component, layer, lambda value: seen.append(value.clone())):
        bare(model.network, DONOR)
    with touched(model.network, names, component, layer, write):
        return bare(model.network, BASE, rows=LENGTH)[:, LAST]


# What is checked when a model is loaded holds on the device, so that everything is offered, on the packed engine.
def test_every_component_is_offered_and_packed(model):
    neurons = () if model.name in MIXTURES else ("neurons",)
    assert model.anatomy.components == STREAM
    assert set(model.anatomy.mediators) == {*MEDIATORS} - {"neurons"} | {*neurons}
    assert choose(model, components(model)).engine == "packed"
    assert model.device.type == DEVICE.type


# Packed = replay = bare hooks, at every position of three layers.
def test_both_engines_equal_bare_hooks(model):
    bound = dict.fromkeys(STREAM, TWO_FORWARDS[model.dtype]) | {
        name: max(TWO_FORWARDS[model.dtype], PATTERN[model.dtype]) for name in MEDIATORS
    }
    plain, largest = bare(model.network, BASE)[:, LAST], 0.0
    whole = [(component, layer, None) for component, layer in product(components(model), SOME_LAYERS)]
    single = [(component, layer, 1) for component, layer in product(model.anatomy.mediators, SOME_LAYERS)]
    places = [*whole, *single]
    worlds = [patch(Site(component, layer, p, part)) for component, layer, part in places for p in EVERYWHERE]
    found = {engine: values(model, worlds, engine).reshape(len(places), LENGTH, -1) for engine in ("packed", "replay")}
    for number, (component, layer, part) in enumerate(places):
        by_hand = patched_by_hand(model, component, layer, part)
        largest = max(largest, share(by_hand, plain.repeat(LENGTH, 0)))
        for engine, values_found in found.items():
            apart = share(values_found[number], by_hand)
            assert apart < bound[component], (engine, component, layer, part)
    assert largest > 2 * bound["resid_post"]  # else nothing would be seen of a write at the wrong place


# The laws, on each engine.


def test_a_runs_own_activations_change_nothing(model, engine):
    plain = bare(model.network, BASE)[0]
    for component, layer in product(components(model), SOME_LAYERS):
        edits = tuple(Edit(Site(component, layer, p), From(Run(BASE), p)) for p in EVERYWHERE)
        found = values(model, [World(Run(BASE), edits, EVERYWHERE)], engine, rows=1).reshape(plain.shape)
        assert share(found, plain) <= SAME_SIZE[engine][model.dtype], (component, layer)


def test_a_whole_layer_of_the_stream_gives_the_donors_logits(model, engine):
    donor = bare(model.network, DONOR)[0]
    assert share(bare(model.network, BASE)[0], donor) > 2 * TWO_FORWARDS[model.dtype]
    for component, layer in product(RESIDUAL, SOME_LAYERS):
        edits = tuple(Edit(Site(component, layer, p), From(Run(DONOR), p)) for p in EVERYWHERE)
        found = values(model, [World(Run(BASE), edits, EVERYWHERE)], engine).reshape(donor.shape)
        assert share(found, donor) < TWO_FORWARDS[model.dtype], (component, layer)


def test_nothing_before_an_edit_changes(model, engine):
    plain = bare(model.network, BASE)[0]
    for component, layer in product(components(model), SOME_LAYERS):
        found = values(model, [patch(Site(component, layer, 5), readout=EVERYWHERE)], engine, rows=1)
        assert share(found.reshape(plain.shape)[:5], plain[:5]) <= SAME_SIZE[engine][model.dtype], (component, layer)


# What is known without running is the same when it is run.
def test_pruning_changes_no_number(model, engine):
    cells = product(components(model), SOME_LAYERS, EVERYWHERE)
    worlds = [World(Run(BASE), (), (LAST,)), *(patch(Site(*cell)) for cell in cells)]
    whole, pruned = (values(model, worlds, engine, prune=prune) for prune in (False, True))
    assert share(pruned, whole) < TWO_FORWARDS[model.dtype]


# Tensors that are given lie in the CPU's memory, and come in float32.
def test_what_is_given_is_written_on_the_device(model):
    generator = torch.Generator().manual_seed(0)
    given, basis = torch.randn(32, generator=generator), torch.randn(3, 32, generator=generator)
    donors = tuple(From(Run(tokens), 3) for tokens in (BASE, DONOR))
    sources = [Given(given), Plus(given), Zero(), Mean(donors), Subspace(basis, donors[1])]
    worlds = [patch(Site(component, 1, 3), source) for component, source in product(STREAM, sources)]
    packed, replay = (values(model, worlds, engine) for engine in ("packed", "replay"))
    assert share(packed, replay) < TWO_FORWARDS[model.dtype]
    assert share(packed, bare(model.network, BASE)[:, LAST].repeat(len(worlds), 0)) > 2 * TWO_FORWARDS[model.dtype]


# A prompt longer than the windows and than one tile of attention's kernels.
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_long_prompts_agree(name, dtype):
    tokens = torch.randint(3, 97, (2, 60), generator=torch.Generator().manual_seed(0)).tolist()
    base, donor = Run(tuple(tokens[0])), Run(tuple(tokens[1]))
    cells = list(product(STREAM, SOME_LAYERS, (0, 1, 31, 58, 59)))
    worlds = [World(base, (Edit(Site(*cell), From(donor, cell[2])),), (20, 59)) for cell in cells]
    packed, replay = (values(tiny(name, dtype=dtype), worlds, engine) for engine in ("packed", "replay"))
    assert share(packed, replay) < TWO_FORWARDS[dtype]


# Memory that runs out.


def sweep(tokens: tuple[int, ...] = BASE, donor: tuple[int, ...] = DONOR) -> list[World]:
    """Every cell of the stream and its parts."""
    last = (len(tokens) - 1,)
    return [
        World(Run(tokens), (Edit(Site(component, layer, position), From(Run(donor), position)),), last)
        for component, layer, position in product(STREAM, range(4), range(len(tokens)))
    ]


@contextmanager
def room_for(model: Model, tokens: int, seen: list[int]) -> Iterator[None]:
    """Every layer says that memory ran out when it is called with more tokens than this; `seen` are its calls."""

    def limited(_: nn.Module, args: Any, kwargs: Any) -> None:
        stream = args[0] if args else kwargs["hidden_states"]
        seen.append(stream.shape[:-1].numel())
        if seen[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    with ExitStack() as stack:
        for layer in model.layers:
            stack.callback(layer.register_forward_pre_hook(limited, with_kwargs=True).remove)
        yield


def test_what_does_not_fit_is_halved(engine):
    model, worlds, seen, room = tiny("llama"), sweep(), [], 5 * LENGTH
    expected = values(model, worlds, engine)
    with room_for(model, room, seen):
        found = values(model, worlds, engine)
    assert max(seen) > room
    assert share(found, expected) < TWO_FORWARDS[model.dtype]


def test_one_run_that_does_not_fit_is_an_error(engine):
    model = tiny("llama")
    message = f"A single run of 9 tokens does not fit into the memory of {DEVICE}"
    with room_for(model, 0, []), pytest.raises(OutOfMemory, match=message):
        values(model, sweep(), engine)


def long_sweep() -> list[World]:
    """1,200 worlds of 60 tokens: some hundred megabytes, where they are run at once."""
    tokens = torch.randint(3, 97, (2, 60), generator=torch.Generator().manual_seed(0)).tolist()
    return sweep(tuple(tokens[0]), tuple(tokens[1]))


@contextmanager
def memory_left(size: int) -> Iterator[None]:
    """The process may take so many bytes more of the GPU, until the context is closed."""
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved(DEVICE) + size
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(DEVICE).total_memory, DEVICE)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)


@needs_gpu_memory
def test_what_the_gpu_does_not_hold_is_halved(engine):
    """It holds half of what the sweep takes at its height; the budget lets it try all at once."""
    model, worlds = tiny("llama", "eager"), long_sweep()
    everything = {"budget": 2**40}
    values(model, sweep(), engine)  # what libraries set aside at their first call is there before
    before = torch.cuda.memory_allocated(DEVICE)
    torch.cuda.reset_peak_memory_stats(DEVICE)
    expected = values(model, worlds, engine, **everything)
    height = torch.cuda.max_memory_allocated(DEVICE) - before
    ran_out = torch.cuda.memory_stats(DEVICE)["num_ooms"]
    with memory_left(height // 2):
        found = values(model, worlds, engine, **everything)
    assert torch.cuda.memory_stats(DEVICE)["num_ooms"] > ran_out
    assert share(found, expected) < TWO_FORWARDS[model.dtype]
    gc.collect()
    assert torch.cuda.memory_allocated(DEVICE) <= before + 2**20  # what ran out leaves nothing behind


# The CPU's numbers, in float32.

BY_FAMILY = ("llama", "gpt2", "gemma3_text", *MIXTURES)


@pytest.mark.parametrize("name", BY_FAMILY)
def test_the_device_gives_the_cpus_logits(name, engine):
    here, there = tiny(name), tiny(name, device=torch.device("cpu"))
    worlds = [patch(Site(*cell)) for cell in product(components(here), SOME_LAYERS, (1, 3, 5, LAST))]
    assert share(values(here, worlds, engine), values(there, worlds, engine)) < TWO_FORWARDS["float32"]


@pytest.mark.parametrize("name", BY_FAMILY)
def test_the_device_gives_the_cpus_gradients(name):
    places = [(component, 1) for component in components(tiny(name))]
    found = []
    for device in (DEVICE, torch.device("cpu")):
        backend = NetworkBackend(tiny(name, device=device), "replay")
        (part,) = backend.gradients([Run(BASE), Run(DONOR)], places, lambda logits: logits[:, -1, 7] - logits[:, -1, 9])
        found.append(part.gradients)
    for place in places:
        here, there = (gradients[place].double().cpu().numpy() for gradients in found)
        assert share(here, there) < 10 * TWO_FORWARDS["float32"], place  # the bound is one of logits


def test_the_device_gives_the_cpus_trace():
    """From prompts to numbers, with the repeats and the spot checks of a trace."""

    def text(tokens: Sequence[int]) -> str:
        return " ".join(f"w{token}" for token in tokens)

    pair = causal_tracing.Pair(clean=text(DONOR), corrupt=text(BASE), answer=" w7", foil=" w9", id="one")
    asked: dict[str, Any] = {"components": ["resid_post", "attn_out"], "heads": ["z"], "progress": False}
    here, there = (
        causal_tracing.trace(tiny("llama", device=device), [pair], **asked).measurements.maps
        for device in (DEVICE, torch.device("cpu"))
    )
    assert here.keys() == there.keys()
    for name, effect in product(here, ("restored", "disrupted")):
        found, expected = (maps[name][effect].values for maps in (here, there))
        assert np.nanmax(np.abs(expected)) > 0.1
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
