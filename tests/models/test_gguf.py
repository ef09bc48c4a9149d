"""GGUF files are converted once, kept by their sha256 within a limit, and give what transformers reads, to the bit."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from typer.testing import CliRunner

import causal_tracing as ct
from causal_tracing.cli.app import app
from causal_tracing.errors import InvalidOption, ModelError
from causal_tracing.models import gguf
from causal_tracing.models.cache import CACHE_VARIABLE, MANIFEST
from causal_tracing.models.gguf import convert, without_bars
from causal_tracing.models.open import open_model
from tiny import logits, tiny_gguf


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(gguf.LIMIT_VARIABLE, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tiny_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def never(*_: object) -> None:
    raise AssertionError("it was converted once more")


def test_a_file_is_converted_once_and_the_second_time_is_the_first_to_the_bit(file: Path, monkeypatch):
    first = open_model(file)
    monkeypatch.setattr(gguf, "convert", never)
    second = open_model(file)
    assert second.source == first.source
    assert second.source["kind"] == "gguf"
    assert second.name == str(file)
    for (name, one), (_, other) in zip(
        first.network.named_parameters(), second.network.named_parameters(), strict=True
    ):
        assert_close(one, other, rtol=0, atol=0, msg=name)
    assert second.tokenizer("ab")["input_ids"] == first.tokenizer("ab")["input_ids"]


def test_it_is_what_transformers_reads(file: Path, monkeypatch):
    kept = open_model(file)
    monkeypatch.setenv(gguf.LIMIT_VARIABLE, "0")  # read as it is
    assert_close(logits(open_model(file).network), logits(kept.network), rtol=0, atol=0)


def test_another_file_of_the_same_name_is_another_model(file: Path, home: Path):
    open_model(file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # in the last weight
    file.write_bytes(content)
    open_model(file)
    assert len([*home.glob("gguf-*")]) == 2


def test_the_cache_keeps_to_its_limit(file: Path, home: Path, tmp_path: Path, monkeypatch):
    open_model(file)
    ((first, size),) = gguf.kept()
    monkeypatch.setenv(gguf.LIMIT_VARIABLE, str(int(2.5 * size)))
    for number in range(2):  # two more, of which one must make room
        other = Path(shutil.copy(file, tmp_path / f"{number}.gguf"))
        content = bytearray(other.read_bytes())
        content[-1 - number] ^= 1
        other.write_bytes(content)
        os.utime(first / MANIFEST, (1, 1))  # used long ago
        open_model(other)
    assert len(gguf.kept()) == 2
    assert not first.exists()


def test_what_is_used_is_not_the_oldest(file: Path):
    open_model(file)
    ((folder, _),) = gguf.kept()
    os.utime(folder / MANIFEST, (1, 1))
    open_model(file)
    assert (folder / MANIFEST).stat().st_mtime > 1000


def test_a_model_above_the_limit_is_not_kept(file: Path, home: Path, monkeypatch):
    monkeypatch.setenv(gguf.LIMIT_VARIABLE, "1000")
    open_model(file)
    assert gguf.kept() == []


def test_a_limit_that_is_none_is_refused(file: Path, monkeypatch):
    monkeypatch.setenv(gguf.LIMIT_VARIABLE, "5GB")
    with pytest.raises(InvalidOption, match="CAUSAL_TRACING_CACHE_LIMIT is '5GB'; it must be a number of bytes"):
        open_model(file)


def test_half_a_file_is_refused(file: Path):
    file.write_bytes(file.read_bytes()[:4000])
    with pytest.raises(ModelError, match="The GGUF file of .* is damaged or not whole"):
        open_model(file)


def test_the_command_shows_and_clears(file: Path, home: Path):
    ct.load(file, progress=False)
    shown = CliRunner().invoke(app, ["cache"])
    assert shown.exit_code == 0
    assert "gguf-" in shown.stdout
    assert f"at most 20000 MB in {home}" in shown.stdout
    cleared = CliRunner().invoke(app, ["cache", "--clear"])
    assert f"MB taken out of {home}" in cleared.stdout
    assert gguf.kept() == []


def test_a_gguf_model_has_a_recipe(file: Path):
    model = ct.load(file, progress=False)
    assert model.recipe is not None
    assert model.recipe.model == str(file)


# --- the conversion ---


def test_the_conversion_keeps_every_bit_and_every_token(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    model = tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "made").mkdir()
    random = torch.get_rng_state()
    capfd.readouterr()
    convert(tmp_path / "tiny.gguf", tmp_path / "made")
    assert capfd.readouterr() == ("", "")
    assert torch.equal(random, torch.get_rng_state())
    plain, quantised = open_model(tmp_path / "made"), open_model(tmp_path / "tiny.gguf")
    assert_close(logits(plain.network), logits(model), rtol=0, atol=0)
    assert_close(logits(plain.network), logits(quantised.network), rtol=0, atol=0)
    assert "quantization_config" not in json.loads((tmp_path / "made" / "config.json").read_text())
    for text in ("the thing", " naïve 東京\n\n x", "<bos>a"):
        ours, theirs = (one.tokenizer(text, return_offsets_mapping=True) for one in (plain, quantised))
        assert ours["input_ids"] == theirs["input_ids"]
        assert ours["offset_mapping"] == theirs["offset_mapping"]


def test_only_bars_are_kept_off_stderr(capsys: pytest.CaptureFixture[str]):
    with without_bars():
        print("\r 10 %|#   |\r 100 %|####|", file=sys.stderr)
        print("a warning", file=sys.stderr)
    assert capsys.readouterr().err == "a warning\n"
