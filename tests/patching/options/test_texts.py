"""Every kind of value is read as it was written, from a command line and from a file."""

from pathlib import Path
from typing import Any

import pytest

from causal_tracing.errors import InvalidOption
from causal_tracing.patching.options import texts
from causal_tracing.patching.options.circuit import RANKING
from causal_tracing.patching.options.declare import GROUPS, plain, specs
from causal_tracing.patching.options.estimate import EstimateOptions
from causal_tracing.patching.options.site_texts import sets
from causal_tracing.patching.options.trace import Options, RunOptions

MEANT: list[tuple[str, Any, dict[str, Any]]] = [
    ("components", ["mlp_out", "resid_mid"], {"components": "mlp_out,resid_mid"}),
    ("layers", [0, 3], {"layers": "0,3"}),
    ("positions", "each", {"positions": "each"}),
    ("positions", [-1, "subject_last"], {"positions": "-1,subject_last"}),
    ("window", 3, {"window": "3"}),
    ("window", {"mlp_out": 10}, {"window": "mlp_out=10"}),
    ("window_sums", False, {"window_sums": False}),
    ("direct", True, {"direct": "true"}),
    ("direct", ["mlps_live"], {"direct": "mlps_live"}),
    ("direct_norm", "frozen", {"direct_norm": "frozen"}),
    ("neurons", True, {"neurons": "all"}),
    ("neurons", {5: [], 20: [14, 1035]}, {"neurons": "5,20:14+1035"}),
    ("heads", ["q", "z"], {"heads": "q,z"}),
    ("edge_query", "last", {"edge_query": "last"}),
    ("edge_query", 3, {"edge_query": "3"}),
    ("edge_query", [3, "subject_last"], {"edge_query": "3,subject_last"}),
    ("edge_heads", ["23.4", "20-22"], {"edge_heads": "23.4,20-22"}),
    ("budget", 2**21, {"budget": "2097152"}),
    ("engine", "replay", {"engine": "replay"}),
    ("seed", 3, {"seed": 3}),
    ("shard", [1, 4], {"shard": "1/4"}),
    ("noise", {"scale": 3.0, "draws": 2, "seed": 4}, {"noise": "3.0sigma", "draws": 2, "draw_seed": 4}),
    ("noise", {"scale": 1.0, "sigma": 0.25}, {"noise": "0.25", "draws": 10, "draw_seed": 0}),
    ("write", {"kind": "zero", "alpha": 0.5}, {"write": "zero", "alpha": 0.5}),
    (
        "write",
        {"kind": "resample", "prompts": [" a b"], "draws": 2, "seed": 1},
        {"write": "resample", "reference": [" a b"], "draws": 2, "draw_seed": 1},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "flags"), MEANT, ids=[f"{name}={value}" for name, value, _ in MEANT])
def test_what_is_written_is_read_again(name, value, flags):
    spec = specs(RunOptions)[name]
    assert spec.text is not None
    assert spec.text.write(name, value) == flags
    assert spec.text.from_file(name, plain(value)) == flags
    meant = spec.text.read(name, flags)
    if isinstance(value, dict) and name in ("noise", "write"):
        assert value.items() <= plain(spec.kept(meant)).items()
    else:
        assert meant == (tuple(value) if name == "shard" else value)


@pytest.mark.parametrize("name", ["heads", "neurons"])
def test_false_is_not_asking(name):
    text = specs(Options)[name].text
    assert text is not None
    assert text.from_file(name, False) == {}
    assert text.from_file(name, True) != {}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("layers", 3, r"It must be a list of layers, such as \[0, 1\]; it is 3"),
        ("layers", ["a"], "a list of layers"),
        ("layers", [True], "a list of layers"),
        ("seed", "3", "a whole number; it is '3'"),
        ("seed", True, "a whole number"),
        ("window_sums", 1, "true or false"),
        ("engine", 3, "a text"),
        ("components", [1], "a list of names"),
        ("neurons", {"5": 3}, "a table from layers to neurons"),
        ("window", {"mlp_out": "10"}, "a table such as"),
        ("noise", {"scal": 3}, "There is no 'scal' in it. Did you mean 'scale'"),
        ("noise", {"rome": True}, "There is no 'rome' in it"),
        ("noise", {"scale": -1.0}, "finite strength of 0 or more"),
        ("write", ["zero"], "a name such as"),
        ("write", {"kind": "given", "tensors": 3}, "a name such as"),
        ("write", {"kin": "zero"}, "There is no 'kin' in it. Did you mean 'kind'"),
    ],
)
def test_values_of_another_form_are_refused(name, value, said):
    text = specs(Options)[name].text
    assert text is not None
    with pytest.raises(InvalidOption, match=said):
        text.from_file(name, value)


def test_numbers_are_tokens_and_all_else_is_a_name():
    assert texts.positions("2,last, -1,+4,²,--3,1.5") == [2, "last", -1, 4, "²", "--3", "1.5"]
    with pytest.raises(InvalidOption, match="neither a layer nor a range"):
        texts.layers("²")


def test_tensors_are_written_and_read(tmp_path):
    import torch

    tensors = {("resid_post", 12): torch.ones(2, 3)[:, 1], ("mlp_out", 0): [1.0, 2.0]}
    texts.write_tensors(tmp_path / "file", tensors)
    found = texts.read_tensors(tmp_path / "file")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[place], torch.as_tensor(tensors[place])) for place in tensors)


@pytest.mark.parametrize("declared", [RunOptions, EstimateOptions])
def test_every_option_is_explained_and_grouped_and_can_be_its_default(declared):
    declared()
    for name, spec in specs(declared).items():
        assert spec.help.endswith("."), name
        assert spec.group in GROUPS
        assert spec.text is not None or name == "progress"
        others = {spec.beside, spec.unless} - {None}
        assert others <= {*specs(declared)}


def test_files_may_begin_with_a_byte_order_mark_and_end_lines_as_windows_does(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfa b\r\nc d\r\n")
    assert texts.write("write", {"write": "mean", "reference": tmp_path / "prompts.txt"}).prompts == ["a b", "c d"]
    (tmp_path / "sets.toml").write_bytes(b'\xef\xbb\xbfa = ["z 1.2 @ last"]\r\n')
    assert sets(str(tmp_path / "sets.toml")) == {"a": ["z 1.2 @ last"]}


def test_a_ranking_of_a_file_is_told_by_a_text_and_a_score_by_a_number():
    for said, meant in (({"file": "scores.json"}, Path("scores.json")), ({"file": 3}, {"file": 3.0})):
        assert RANKING.fits(said)
        assert RANKING.read("ranking", RANKING.from_file("ranking", said)) == meant
