"""The backend through nnsight, in this process: every kind of write gives what replay gives, to 1e-5 logits."""

from pathlib import Path
from typing import Any

import pytest
import torch

import causal_tracing as ct
from causal_tracing.engine.backend import Backend
from causal_tracing.engine.hooks.replay import Replay
from causal_tracing.errors import ComponentNotOffered, InvalidOption
from causal_tracing.interventions.edits import Edit, From, Given, Mean, Plus, Run, Subspace, World, Zero
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model
from forked_driver import executed
from tiny import tiny_model, tiny_tokenizer

pytest.importorskip("nnsight")
CLOSE = 1e-5
BASE, DONOR, LONGER = Run((1, 20, 21, 22, 23)), Run((1, 30, 21, 22, 23)), Run((1, 30, 31, 32, 33, 34, 35))
COMPONENTS = ("resid_pre", "attn_out", "mlp_out", "resid_post", "z", "neurons")
GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def both(request: pytest.FixtureRequest) -> tuple[Model, Model]:
    """The same network, loaded plainly and through nnsight."""
    network = tiny_model(request.param, **(GPT2 if request.param == "gpt2" else {}))
    return ct.load(network, tiny_tokenizer()), ct.load(network, tiny_tokenizer(), remote=False)


def by_replay(model: Model, worlds: list[World]) -> torch.Tensor:
    run = Replay(model, worlds, 2**28)
    found: dict[int, torch.Tensor] = {}
    for batch in run.batches(None):
        for numbers, logits in run.logits(batch):
            found.update(zip(numbers, logits.double(), strict=True))
    return torch.stack([found[number] for number in range(len(worlds))])


def through(backend: Backend, worlds: list[World]) -> torch.Tensor:
    found = backend.evaluate(worlds, lambda logits, _: logits.flatten(1), prune=False)
    return torch.from_numpy(found.values).view(len(worlds), len(worlds[0].readout), -1)


def held(both: tuple[Model, Model], worlds: list[World]) -> torch.Tensor:
    """What nnsight gives, held against replay; and every world moved."""
    plain, traced = both
    expected, found = by_replay(plain, worlds), through(traced.backend, worlds)
    assert (found - expected).abs().max() < CLOSE
    unedited = by_replay(plain, [World(world.base, (), world.readout) for world in worlds])
    moved = (found - unedited).abs().amax((1, 2))
    assert (moved > 2 * CLOSE).all(), moved
    return found


def part(component: str) -> int | None:
    return 1 if component in ("z", "neurons") else None


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_donor_of_each_component(both: tuple[Model, Model], component: str):
    assert both[1].backend.describe().engine == "nnsight"
    sites = [Site(component, layer, 1, part(component)) for layer in range(4)]
    held(both, [World(BASE, (Edit(site, From(DONOR, 1)),), (4, 3)) for site in sites[:3]])
    window = tuple(Edit(site, From(DONOR, 1)) for site in sites[1:])
    held(both, [World(BASE, window, (4,))])


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_kind_of_write(both: tuple[Model, Model], component: str):
    site = Site(component, 1, 2)
    width = both[1].backend.record([BASE], [(component, 1)])[BASE].activations[component, 1].shape[-1]
    generator = torch.Generator().manual_seed(0)
    tensor = 3 * torch.randn(width, generator=generator)
    basis = torch.randn(5, width, generator=generator)
    sources = {
        "mean": Mean((From(DONOR, 2), From(LONGER, 5), From(BASE, 4))),
        "zero": Zero(),
        "given": Given(tensor),
        "plus": Plus(tensor),
        "subspace": Subspace(basis, From(LONGER, 4)),
        "longer": From(LONGER, 6),
    }
    worlds = [World(BASE, (Edit(site, source, alpha),), (4,)) for source in sources.values() for alpha in (1.0, 0.6)]
    held(both, worlds)


def test_donors_that_are_patched_themselves_and_noise(both: tuple[Model, Model]):
    noise = torch.randn(32, generator=torch.Generator().manual_seed(1))
    noised = Run(BASE.tokens, (Edit(Site("embed", 0, 1), Plus(noise)),))
    first, second = Site("mlp_out", 0, 2), Site("resid_post", 2, 3)
    patched = Run(DONOR.tokens, (Edit(first, From(LONGER, 2)), Edit(Site("z", 1, 3, 2), From(noised, 3))))
    worlds = [
        World(noised, (Edit(Site("resid_post", 1, 1), From(BASE, 1)),), (4,)),
        World(BASE, (Edit(first, From(patched, 2)), Edit(second, From(patched, 3))), (4,)),
        World(noised, (Edit(first, From(patched, 2)),), (4,)),
    ]
    held(both, worlds)


def test_recordings_are_those_of_replay(both: tuple[Model, Model]):
    from causal_tracing.engine.hooks.record import record

    plain, traced = both
    places = [("z", 2), ("embed", 0), ("resid_post", 3), ("attn_out", 0)]
    patched = Run(BASE.tokens, (Edit(Site("resid_post", 1, 2), From(LONGER, 3)),))
    runs = [BASE, DONOR, patched]
    expected, found = record(plain, runs, places, keep=2), traced.backend.record(runs, places, keep=2)
    for run in runs:
        assert (expected[run].logits - found[run].logits).abs().max() < CLOSE
        for place in places:
            assert (expected[run].activations[place] - found[run].activations[place]).abs().max() < CLOSE


def test_a_trace_and_what_is_refused(both: tuple[Model, Model]):
    plain, traced = both
    pair = ct.Pair(clean="the city of Rome is", corrupt="the city of Paris is", answer=" Rome in", foil=" Paris to")
    asked: dict[str, Any] = {"components": ["resid_post", "mlp_out"], "heads": ["z"], "progress": False}
    expected = ct.trace(plain, pair, **asked, engine="replay").effects
    found = ct.trace(traced, pair, **asked)
    assert abs(found.effects.restoration - expected.restoration).max() < CLOSE
    assert abs(expected.restoration).max() > 1e-2
    assert found.provenance["engine"] == "nnsight"
    assert found.provenance["spot_checks"]["largest_difference"] < CLOSE
    with pytest.raises(ComponentNotOffered, match="q is not offered .* Offered: resid_pre, attn_out"):
        ct.trace(traced, pair, heads=["q"], progress=False)
    with pytest.raises(ComponentNotOffered, match=r"need gradients, and the backend of .* \('nnsight'\) has none"):
        ct.attribute(traced, pair)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_what_no_backend_of_nnsights_shows_is_refused_in_donors_too(both: tuple[Model, Model], depth: int):
    """The world's own edit, its donor's, and the donor's donor's: at what nnsight would write somewhere else."""
    edit = Edit(Site("q", 1, 2, 1), From(DONOR, 2))
    for _ in range(depth):
        edit = Edit(Site("resid_post", 2, 3), From(Run(DONOR.tokens, (edit,)), 3))
    with pytest.raises(ComponentNotOffered, match=r"q is not offered .* inside attention, which nnsight does not show"):
        through(both[1].backend, [World(BASE, (edit,), (4,))])


@pytest.mark.parametrize("remote", ["here", "https://example.org"])
def test_what_is_no_way_to_run_a_model(remote: Any):
    with pytest.raises(InvalidOption, match=r"Valid: True \(NDIF\), False .* NDIF_HOST or nnsight"):
        ct.load("demo", remote=remote)


def test_models_that_are_here_are_not_run_elsewhere(tmp_path: Path):
    for model, shown in (("demo", "demo"), (str(tmp_path), str(tmp_path)), (tiny_model(), "LlamaForCausalLM")):
        with pytest.raises(InvalidOption, match=f"remote=True runs a model that a server has: .* {shown} is here"):
            ct.load(model, remote=True)
    with pytest.raises(InvalidOption, match="dtype='bfloat16' does not apply to a model at NDIF"):
        ct.load("some/model", remote=True, dtype="bfloat16")


def test_the_package_is_not_needed_where_a_trace_runs():
    """nnsight hides what a server does not have; a process of its own, for it leaves sys.path in another order."""
    script = Path(__file__).with_name("as_on_a_server.py")
    done = executed(script, str(Path(__file__).parents[2]))
    assert done.returncode == 0, done.stderr
    *_, llama, gpt2 = done.stdout.splitlines()
    for line in (llama, gpt2):
        apart, moved, components = line.split(maxsplit=2)
        assert float(apart) < CLOSE
        assert float(moved) > 1e-2
        assert components == " ".join(COMPONENTS)


def test_the_logit_lens_is_what_it_is_without_nnsight(both: tuple[Model, Model]):
    pair = ct.Pair(clean="the city of Rome is", corrupt="the city of Paris is", answer=" Rome", foil=" Paris")
    plain, traced = (
        ct.trace(model, pair, components=["resid_post"], layers=[1], lens=True, progress=False, spot_checks=0)
        for model in both
    )
    assert traced.provenance["engine"] == "nnsight"
    here, there = plain.measurements.lens, traced.measurements.lens
    assert here is not None
    assert there is not None
    for name in ("answer_logit", "foil_logit", "top_prob"):
        assert abs(here[name] - there[name]).max() < CLOSE
    assert (here.top == there.top).all()
    assert abs(here.answer_logit).max() > 0.01
