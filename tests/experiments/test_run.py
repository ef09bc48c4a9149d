"""Run folders: the same numbers as a trace, whatever stops them; what was begun with something else is refused."""

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import causal_tracing as ct
from causal_tracing.engine.checks.check import accept
from causal_tracing.errors import InvalidOption, InvalidResults
from causal_tracing.models.model import Model
from causal_tracing.results.storage.merge import merge
from causal_tracing.results.storage.run_folder import RESULTS, Store, read_manifest, write_manifest
from families import FAMILIES, build
from forked_driver import executed
from joint import WORDS, tiny
from runs import COUNT, LONGER, PAIRS, arrays, copied, pair, whole_run
from tokenizers_for_tests import words


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.fixture(scope="module")
def whole(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_run(model, tmp_path_factory.mktemp("runs") / "whole")


def test_a_run_is_the_trace_of_its_pairs(model, whole):
    run, trace = ct.open_trace(whole), ct.trace(model, PAIRS)
    assert run.effects.sizes == trace.effects.sizes
    at = {"metric": ["logit_diff", "log_prob", "prob", "neg_kl"]}
    for name in ("restoration", "disruption", "total_effect"):
        np.testing.assert_allclose(run.effects[name].sel(at), trace.effects[name].sel(at), rtol=0, atol=2e-5)
    assert (run.effects.status == trace.effects.status).all()
    assert [found["id"] for found in run.provenance["pairs"]] == [f"pair-{n}" for n in range(COUNT)]
    assert run.provenance["worlds"] == trace.provenance["worlds"]
    assert run.provenance["spot_checks"]["cells"] == 3 * 9
    assert run.provenance["spot_checks"]["largest_difference"] < 1e-4


def test_the_same_command_again_does_nothing_and_says_the_same(model, whole, monkeypatch):
    before = arrays(whole)
    monkeypatch.setattr("causal_tracing.experiments.chunks.measured", None)  # nothing is left to measure
    again = ct.run(model, PAIRS, whole)
    assert arrays(whole) == before
    assert again.summary() == ct.open_trace(whole).summary()


class Killed(BaseException):
    pass


def test_what_is_stopped_goes_on_and_ends_with_the_same_bytes(model, whole, tmp_path, monkeypatch):
    """Stopped in the middle of the second chunk: the first is kept, the second is measured again."""

    def stop(done: int, total: int) -> None:
        if done > 0.5 * total:
            raise Killed

    with pytest.raises(Killed):
        ct.run(model, PAIRS, tmp_path / "run", progress=stop)
    part = ct.open_trace(tmp_path / "run")
    assert part.effects.sizes["pair"] == 8
    assert part.provenance["pairs_missing"] == COUNT - 8
    ct.run(model, PAIRS, tmp_path / "run")
    assert arrays(tmp_path / "run") == arrays(whole)


JOINT: dict[str, Any] = {
    "components": [],
    "sets": {"two": ["mlp_out 1 @ last", "z 2.0-1 @ 1"], "one": ["resid_post 1 @ 1"]},
    "growing": ["two"],
    "interactions": ["each z 3.0-2 @ last"],
}


def test_so_it_does_with_what_is_patched_together(model, tmp_path):
    def stop(done: int, total: int) -> None:
        if done > 0.5 * total:
            raise Killed

    few = PAIRS[:12]
    direct = ct.trace(model, few, **JOINT)
    ct.run(model, few, tmp_path / "whole", **JOINT)
    with pytest.raises(Killed):
        ct.run(model, few, tmp_path / "run", **JOINT, progress=stop)
    assert ct.open_trace(tmp_path / "run").of("sets").sizes["pair"] == 8
    found = ct.run(model, few, tmp_path / "run", **JOINT)
    assert arrays(tmp_path / "run") == arrays(tmp_path / "whole")
    for kind in ("sets", "growing", "interactions"):
        again = ct.open_trace(tmp_path / "run").of(kind)
        assert again.identical(found.of(kind))
        np.testing.assert_allclose(again.restoration.values, direct.of(kind).restoration.values, atol=1e-5)
    other: dict[str, Any] = JOINT | {"sets": {"two": ["mlp_out 1 @ last"]}}
    with pytest.raises(InvalidResults, match="was begun with something else: options.sets"):
        ct.run(model, few, tmp_path / "run", **other)


KILLER = """
import os, signal, sys, time, random
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(1)  # a forked child could not wait for the parent's threads
from causal_tracing.engine.checks.check import accept
from families import FAMILIES, build
from joint import WORDS
from runs import PAIRS
import causal_tracing as ct

model = accept(build(next(family for family in FAMILIES if family.name == "llama")), WORDS, name="tiny")
folder, seed = sys.argv[1], int(sys.argv[2])
started = time.time()
few = {"components": ["mlp_out"], "spot_checks": 1}  # short, so that most kills fall between beginning and end
ct.run(model, PAIRS, folder + "-whole", **few)
length, wait, kills = time.time() - started, random.Random(seed), 0
while True:
    child = os.fork()
    if not child:
        ct.run(model, PAIRS, folder, **few)
        os._exit(0)
    time.sleep(wait.uniform(0.05, 0.6) * length)
    if kills < 20:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        kills += 1
    elif kills == 20:
        break
    else:  # it came to its end before it was killed: begin again
        import shutil
        shutil.rmtree(folder)
print(kills)
"""


def test_twenty_kills_lose_nothing_and_double_nothing(tmp_path):
    """kill -9 at random moments: no lost row, no double row, the same arrays at the end."""
    done = executed(KILLER, str(tmp_path / "run"), "7", str(Path(__file__).parents[1]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "20"
    found = arrays(tmp_path / "run")
    assert len(found) == COUNT
    assert found == arrays(tmp_path / "run-whole")
    with sqlite3.connect(tmp_path / "run" / RESULTS) as connection:
        assert connection.execute("SELECT count(*) FROM chunks").fetchone() == (3,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"components": ["mlp_out"]}, "options.components was .*mlp_out.* and is now"),
        ({"seed": 1}, "options.seed was 0 and is now 1"),
        ({"keep": "preferred"}, 'keep was "all" and is now "preferred"'),
        ({"shard": (0, 2)}, r"shard was \[0, 1\] and is now \[0, 2\]"),
        ({"pairs": PAIRS[:-1]}, "pairs_sha256 was"),
    ],
)
def test_another_specification_is_refused_with_what_differs(model, whole, change, said):
    asked = {"pairs": PAIRS} | change
    with pytest.raises(InvalidResults, match=f"was begun with something else: .*{said}"):
        ct.run(model, asked.pop("pairs"), whole, **asked)


def test_another_model_is_refused(whole):
    other = accept(build(next(family for family in FAMILIES if family.name == "llama")), WORDS, name="tiny")
    next(iter(other.layers[1].parameters())).data[0] += 0.5
    with pytest.raises(InvalidResults, match="model.fingerprint was"):
        ct.run(other, PAIRS, whole)


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_fails_before_its_first_result_leaves_nothing(model, tmp_path, monkeypatch, there):
    folder = tmp_path / "deep" / "run"
    if there:
        folder.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidOption, match="There is no layer 99"):
        ct.run(model, PAIRS[:2], folder, layers=[99])
    assert sorted(tmp_path.rglob("*")) == before

    def stop(*_: Any) -> Any:
        raise TimeoutError("enough")

    with pytest.raises(TimeoutError):
        ct.run(model, PAIRS[:2], folder, progress=stop)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InvalidResults, match="has no manifest"):
        merge(folder, [tmp_path / "none"])
    assert sorted(tmp_path.rglob("*")) == before
    assert ct.run(model, PAIRS[:2], folder).effects.sizes["pair"] == 2


def test_shards_of_other_thread_counts_are_not_merged(whole, tmp_path):
    other = copied(whole, tmp_path)
    manifest = read_manifest(other)
    write_manifest(other, manifest | {"spec": manifest["spec"] | {"threads": manifest["spec"]["threads"] + 1}})
    with pytest.raises(InvalidResults, match=r"was run on 2 threads and .* on 1: the last bits .* OMP_NUM_THREADS"):
        merge(tmp_path / "all", [whole, other])
    assert not (tmp_path / "all").exists()


def test_shards_put_together_are_the_whole(model, whole, tmp_path):
    shards = [tmp_path / f"shard-{n}" for n in range(2)]
    for n, shard in enumerate(shards):
        ct.run(model, PAIRS, shard, shard=(n, 2))
    assert merge(tmp_path / "all", shards) == []
    assert arrays(tmp_path / "all") == arrays(whole)
    assert ct.open_trace(tmp_path / "all").provenance["pairs_missing"] == 0
    ct.run(model, PAIRS, tmp_path / "all")
    assert merge(tmp_path / "some", shards[:1]) == [1]
    assert ct.open_trace(tmp_path / "some").provenance["pairs_missing"] == 8
    ct.run(model, PAIRS[:10], tmp_path / "other", shard=(1, 2))
    with pytest.raises(InvalidResults, match="is no shard of the same run .*pairs_sha256"):
        merge(tmp_path / "bad", [shards[0], tmp_path / "other"])


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0), (0,)])
def test_no_shard(model, tmp_path, shard):
    with pytest.raises(InvalidOption, match="shard="):
        ct.run(model, PAIRS, tmp_path / "run", shard=shard)


def test_noise_heads_and_neurons_are_kept_too(model, tmp_path):
    pairs = [
        ct.Pair(clean=one.clean, answer=" w7", foil=" w8", subject=f"w{20 + n}") for n, one in enumerate(PAIRS[:6])
    ]
    options: dict[str, Any] = {"noise": ct.Noise(draws=4), "heads": ["z"], "neurons": {1: [3]}, "layers": [1]}
    run, trace = ct.run(model, pairs, tmp_path / "run", **options), ct.trace(model, pairs, **options)
    assert run.provenance["noise"] == trace.provenance["noise"]
    at = {"metric": "logit_diff"}
    for name in ("effects", "heads", "neurons"):
        one, other = getattr(run, name).restoration.sel(at), getattr(trace, name).restoration.sel(at)
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)
    assert "Gaussian noise" in run.summary(pair="pair-5")


def test_law_31_order_neighbours_and_duplicates_change_no_pair_and_no_mean(model, tmp_path):
    """Each pair by its own id; a duplicate in its cluster changes no mean either."""
    pairs = [pair(n, id=f"p{n}", cluster=f"fact {n}", subject=f"w{20 + n}") for n in range(10)]
    copy = pair(3, id="copy", cluster="fact 3", subject="w23")
    first = ct.run(model, pairs, tmp_path / "first")
    other = ct.run(model, [copy, LONGER, *pairs[::-1]], tmp_path / "other")
    for name in ("restoration", "disruption", "total_effect"):
        there = first.effects[name].sel(metric="logit_diff")
        here = other.effects[name].sel(metric="logit_diff", pair=there.pair)
        here = here.sel(position=there.position) if "position" in there.dims else here
        np.testing.assert_allclose(here, there, rtol=0, atol=1e-5)
        copied_ = other.effects[name].sel(metric="logit_diff", pair="copy")
        np.testing.assert_allclose(copied_, other.effects[name].sel(metric="logit_diff", pair="p3"), rtol=0, atol=1e-5)
    again = ct.run(model, [copy, *pairs[::-1]], tmp_path / "again").evidence()
    np.testing.assert_allclose(again.cells.restoration, first.evidence().cells.restoration, rtol=0, atol=1e-5)
    assert (again.clusters, again.pairs) == (10, 11)


def test_a_run_whose_longest_pairs_are_not_done_yet_has_its_page(model, tmp_path, monkeypatch):
    """Columns are those of all pairs, tokens those of the pairs that are there."""
    pairs = [*(pair(n, subject=f"w{20 + n}") for n in range(8)), LONGER]
    stopped = Store.add

    def stop(self: Store, chunk: int, *given: Any) -> None:
        if chunk == 1:
            raise KeyboardInterrupt
        stopped(self, chunk, *given)

    monkeypatch.setattr(Store, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        ct.run(model, pairs, tmp_path / "run")
    trace = ct.open_trace(tmp_path / "run")
    assert trace.effects.sizes["position"] == 5
    assert trace.effects.sizes["token"] == 5
    assert (trace.measurements.pairs.corrupt_position.values == [[0, 1, 2, 3, -1]] * 8).all()
    assert "Mean over 8 of 9 pairs (1 not done)" in trace.to_html()
    assert "resid_post" in trace.summary(pair="pair-0")


def test_another_tokenizer_is_another_run(model, tmp_path):
    ct.run(model, PAIRS[:2], tmp_path / "run")
    others = words("x", *(f" w{n}" for n in range(96)))
    with pytest.raises(InvalidResults, match="begun with something else: tokens_sha256"):
        ct.run(replace(model, tokenizer=others), PAIRS[:2], tmp_path / "run")
