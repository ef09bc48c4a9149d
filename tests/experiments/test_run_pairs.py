"""Which pairs a run measures: those that cannot be traced or do not fit into memory, and those that it keeps."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import causal_tracing as ct
from causal_tracing.errors import InvalidPair, InvalidResults, OutOfMemory
from causal_tracing.models.model import Model
from causal_tracing.patching.options.trace import RunOptions
from causal_tracing.prompts.pairs import named as ct_named
from causal_tracing.results.storage.merge import merge
from joint import WORDS, tiny
from runs import COUNT, LONGER, MISALIGNED, PAIRS, arrays, pair


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def test_pairs_that_cannot_be_traced_are_marked_and_the_rest_goes_on(model, tmp_path):
    found = ct.run(model, [PAIRS[0], MISALIGNED, LONGER, pair(3, id="same", foil=" w7")], tmp_path / "run")
    assert found.provenance["failed"].keys() == {"misaligned", "same"}
    assert "cannot be patched position by position" in found.provenance["failed"]["misaligned"]
    assert "answer and foil are the same token" in found.provenance["failed"]["same"]
    assert found.effects.pair.values.tolist() == ["pair-0", "pair-2"]
    assert found.effects.sizes["position"] == 5
    alone = ct.trace(model, LONGER).effects
    at = {"metric": "logit_diff"}
    np.testing.assert_allclose(
        found.effects.restoration.sel(at).isel(pair=1), alone.restoration.sel(at).isel(pair=0), rtol=0, atol=2e-5
    )
    assert (found.effects.status.sel(pair="pair-0", position=4) == "unpaired").all()
    with pytest.raises(InvalidPair, match="None of the 1 pairs can be traced. The first: .*position by position"):
        ct.run(model, [MISALIGNED], tmp_path / "none")


def test_a_pair_that_does_not_fit_into_memory_is_marked(model, tmp_path, monkeypatch):
    from causal_tracing.experiments import chunks

    real = chunks.measured  # pyright: ignore[reportPrivateImportUsage]

    def too_large(job: Any, progress: Any) -> Any:
        if any(each.id == "pair-2" for each in job.pairs):
            raise OutOfMemory("A single run does not fit.")
        return real(job, progress)

    monkeypatch.setattr(chunks, "measured", too_large)
    found = ct.run(model, PAIRS[:4], tmp_path / "run")
    assert found.provenance["failed"] == {"pair-2": "A single run does not fit."}
    assert found.effects.pair.values.tolist() == ["pair-0", "pair-1", "pair-3"]


def test_a_pair_of_unequal_lengths_fails_by_itself_where_patterns_are_exchanged(model, tmp_path):
    shifted = ct.Pair(clean=f" w9{PAIRS[1].clean}", corrupt=PAIRS[1].corrupt, answer=" w7", foil=" w8", id="shifted")
    options: dict[str, Any] = {"align": "suffix", "heads": ["pattern"], "layers": [1]}
    for _ in range(2):  # and so it does when the run is gone on with
        found = ct.run(model, [PAIRS[0], shifted], tmp_path / "run", **options)
        assert found.effects.pair.values.tolist() == ["pair-0"]
        assert found.provenance["failed"].keys() == {"shifted"}
        assert "a pattern goes over all tokens of a prompt, and these have 5 and 4" in str(found.provenance["failed"])
    with pytest.raises(InvalidPair, match="pair 'shifted': a pattern goes over all tokens"):
        ct.trace(model, [PAIRS[0], shifted], **options)


def limited(real: Callable[..., Any], fits: Callable[[Any], bool]) -> Callable[..., Any]:
    """A forward for which memory runs out where the runs do not fit."""

    def forward(model: Model, runs: Any, *given: Any, **options: Any) -> Any:
        if not fits(runs):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(model, runs, *given, **options)

    return forward


def test_a_run_goes_on_with_fewer_at_once_where_eight_do_not_fit(model, tmp_path, monkeypatch):
    from causal_tracing.engine.hooks import record
    from causal_tracing.engine.packed import base_runs

    there = ct.run(model, PAIRS[:8], tmp_path / "whole")
    for module in (record, base_runs):
        monkeypatch.setattr(module, "forward", limited(module.forward, lambda runs: len(runs) <= 4))
    found = ct.run(model, PAIRS[:8], tmp_path / "run")
    assert found.provenance["failed"] == {}
    at = {"metric": "logit_diff", "pair": found.effects.pair}
    np.testing.assert_allclose(found.effects.restoration.sel(at), there.effects.restoration.sel(at), rtol=0, atol=2e-5)


def test_where_memory_runs_out_half_of_the_pairs_are_in_work_at_once(model, tmp_path, monkeypatch):
    from causal_tracing.experiments import chunks

    real, sizes = chunks.measured, []  # pyright: ignore[reportPrivateImportUsage]

    def too_many(job: Any, progress: Any) -> Any:
        sizes.append(len(job.pairs))
        if len(job.pairs) > 4:
            raise OutOfMemory("A single run does not fit.")
        return real(job, progress)

    monkeypatch.setattr(chunks, "measured", too_many)
    assert ct.run(model, PAIRS[:8], tmp_path / "run").effects.sizes["pair"] == 8
    assert sizes == [8, 4, 4]


def test_a_pair_whose_noise_does_not_fit_into_memory_is_marked(model, tmp_path, monkeypatch):
    """How strong noise is, is measured on a run of the prompt, before anything is traced."""
    from causal_tracing.engine.hooks import record

    fits = limited(record.forward, lambda runs: all(len(run.tokens) < 5 for run in runs))
    monkeypatch.setattr(record, "forward", fits)
    longer = ct.Pair(clean=LONGER.clean, answer=" w7", foil=" w8", subject="w12", id="longer")
    pairs = [ct.Pair(clean=one.clean, answer=" w7", foil=" w8", subject="w13") for one in PAIRS[:2]]
    found = ct.run(model, [longer, *pairs], tmp_path / "run", noise=ct.Noise(draws=2), positions=["last"])
    assert found.provenance["failed"].keys() == {"longer"}
    assert "A single run of 5 tokens does not fit into the memory" in found.provenance["failed"]["longer"]
    assert found.effects.sizes["pair"] == 2
    with pytest.raises(OutOfMemory, match="A single run of 5 tokens does not fit"):
        ct.trace(model, longer, noise=ct.Noise(draws=2))


def test_only_pairs_that_the_clean_run_gets_right(model, tmp_path):
    """Chosen by the clean run alone, as a bare forward has it."""
    import torch

    def clean(one: ct.Pair) -> torch.Tensor:
        with torch.no_grad():
            return model.network(torch.tensor([WORDS(one.clean)["input_ids"]])).logits[0, -1]

    answer, foil = (WORDS(text)["input_ids"][0] for text in (" w7", " w8"))
    preferred = [f"pair-{n}" for n, one in enumerate(PAIRS) if clean(one)[answer] > clean(one)[foil]]
    assert 0 < len(preferred) < COUNT
    found = ct.run(model, PAIRS, tmp_path / "preferred", keep="preferred")
    assert found.effects.pair.values.tolist() == preferred
    assert len(found.provenance["dropped"]) == COUNT - len(preferred)
    assert f"Mean over {len(preferred)} of {COUNT} pairs" in found.summary()
    right = [
        pair(n, answer=WORDS.decode([int(clean(one).argmax())]), foil=" w96") if n % 2 else one
        for n, one in enumerate(PAIRS[:6])
    ]
    found = ct.run(model, right, tmp_path / "first", keep="first_choice")
    assert found.effects.pair.values.tolist() == [f"pair-{n}" for n in (1, 3, 5)]


def test_what_keep_asks_is_of_few_pairs_at_once_and_of_a_shards_own(model, tmp_path, monkeypatch):
    """No more than a chunk's log-probabilities are there at once; what they say is not asked again."""
    from causal_tracing.experiments import filter as filtering

    real, asked = filtering.log_probs, []  # pyright: ignore[reportPrivateImportUsage]

    def counted(backend: Any, runs: Any) -> Any:
        asked.append([run.tokens for run in runs])
        return real(backend, runs)

    monkeypatch.setattr(filtering, "log_probs", counted)
    tokens = [tuple(WORDS(one.clean)["input_ids"]) for one in PAIRS]
    kept = filtering.keep_pairs(model, ct_named(PAIRS * 2), RunOptions(), "preferred")
    assert max(map(len, asked)) == filtering.ASKED_AT_ONCE
    whole = ct.run(model, PAIRS, tmp_path / "whole", keep="preferred")
    assert [id for id in kept.dropped if int(id[5:]) < COUNT] == [*whole.provenance["dropped"]]
    asked.clear()
    ct.run(model, PAIRS, tmp_path / "shard-1", keep="preferred", shard=(1, 2))
    assert asked == [tokens[8:16]]
    ct.run(model, PAIRS, tmp_path / "shard-0", keep="preferred", shard=(0, 2))
    assert asked == [tokens[8:16], tokens[:8], tokens[16:]]
    ct.run(model, PAIRS, tmp_path / "shard-0", keep="preferred", shard=(0, 2))
    assert len(asked) == 3
    assert merge(tmp_path / "all", [tmp_path / "shard-0", tmp_path / "shard-1"]) == []
    assert arrays(tmp_path / "all") == arrays(tmp_path / "whole")
    merged = ct.run(model, PAIRS, tmp_path / "all", keep="preferred")
    said, expected = (re.sub(r" worlds in \d+ s", "", each.summary()) for each in (merged, whole))
    assert said == expected


def test_what_only_pairs_have_that_were_left_out_is_in_no_map(model, tmp_path):
    longer = replace(LONGER, foil=None)  # which it cannot be preferred to
    found = ct.run(model, [longer, *PAIRS[:8]], tmp_path / "run", keep="preferred", heads=["z"], layers=[1])
    assert found.provenance["dropped"]["pair-0"] == "there is no foil"
    assert (found.effects.sizes["position"], found.heads.sizes["position"], found.effects.sizes["token"]) == (4, 4, 4)
    with pytest.raises(InvalidResults, match="None of the 1 pairs of .* was measured. The first: there is no foil"):
        ct.run(model, [longer], tmp_path / "none", keep="preferred")


def test_a_pair_that_is_too_large_to_be_asked_about_is_marked(model, tmp_path, monkeypatch):
    from causal_tracing.engine.hooks import record

    fits = limited(record.forward, lambda runs: all(len(run.tokens) < 5 for run in runs))
    monkeypatch.setattr(record, "forward", fits)
    found = ct.run(model, [replace(LONGER, id="longer"), *PAIRS[:8]], tmp_path / "run", keep="preferred")
    assert found.provenance["failed"].keys() == {"longer"}
    assert found.effects.sizes["pair"] + len(found.provenance["dropped"]) == 8
