"""A run folder that another version began: it is read as it is, and not gone on with, in one clear sentence."""

import json
import shutil
from pathlib import Path

import pytest

import causal_tracing as ct
from causal_tracing.errors import InvalidResults
from causal_tracing.results.storage.run_folder import read_manifest, write_manifest
from loaded import shared
from tokenizers_for_tests import words

OLD = Path(__file__).parent / "v0.1.0" / "run"
WORDS = words(*(f" w{n}" for n in range(96)))


def test_a_run_of_version_010_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    folder = shutil.copytree(OLD, tmp_path / "run")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert "prob_diff" not in ct.open_trace(folder).effects.metric.values
    model = ct.load(shared("llama").network, WORDS)
    pairs = [ct.Pair(clean=" w1 w2", corrupt=" w3 w2", answer=" w7", foil=" w8")]
    with pytest.raises(InvalidResults) as error:
        ct.run(model, pairs, folder, components=["mlp_out"], progress=False)
    said = str(error.value)
    assert "was begun by causal-tracing 0.1.0, and this is " in said
    assert "give --out another name" in said
    assert "fingerprint" not in said  # all else differs too, and is not listed
    after = {file.name: file.read_bytes() for file in folder.iterdir() if file.name in before}
    assert after == before
    ct.open_trace(folder)


def test_of_this_version_it_is_said_what_differs(tmp_path: Path) -> None:
    model = ct.load(shared("llama").network, WORDS)
    pairs = [ct.Pair(clean=" w1 w2", corrupt=" w3 w2", answer=" w7", foil=" w8")]
    ct.run(model, pairs, tmp_path / "run", components=["mlp_out"], progress=False)
    with pytest.raises(InvalidResults, match=r"was begun with something else: options\.components"):
        ct.run(model, pairs, tmp_path / "run", components=["attn_out"], progress=False)
    manifest = read_manifest(tmp_path / "run")
    manifest["spec"]["versions"]["causal-tracing"] = "0.0.9"
    write_manifest(tmp_path / "run", json.loads(json.dumps(manifest)))
    with pytest.raises(InvalidResults, match=r"was begun by causal-tracing 0\.0\.9"):
        ct.run(model, pairs, tmp_path / "run", components=["mlp_out"], progress=False)
