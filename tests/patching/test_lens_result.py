"""The lens wherever a trace goes: folders, files, JSON, words, the terminal, the command line, pages."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import xarray as xr
from numpy.testing import assert_allclose
from playwright.sync_api import Browser

import causal_tracing
import causal_tracing as ct
from causal_tracing.cli import app as cli
from causal_tracing.report.document import document
from causal_tracing.report.terminal import lens as tables
from causal_tracing.report.words.lens import NOT_SHOWN, READ
from causal_tracing.results.lens import lens_of, mean_lens
from joint import WORDS
from loaded import shared
from made import longer, pair
from pages import launched, needs_browser, opened

OPTIONS: dict[str, Any] = {"components": ["resid_post"], "progress": False, "spot_checks": 0, "lens": True}


@pytest.fixture(scope="module")
def model() -> Any:
    return replace(shared("llama"), tokenizer=WORDS, name="tiny")


@pytest.fixture(scope="module")
def single(model: Any) -> ct.Trace:
    return ct.trace(model, pair(0, id="p"), **OPTIONS)


@pytest.fixture(scope="module")
def many(model: Any) -> ct.Trace:
    return ct.trace(model, [*(pair(n, id=f"p{n}") for n in range(3)), replace(longer(5), id="long")], **OPTIONS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as found:
        yield found


def test_a_run_folder_holds_what_a_trace_has(model: Any, many: ct.Trace, tmp_path: Path):
    pairs = [*(pair(n, id=f"p{n}") for n in range(3)), replace(longer(5), id="long")]
    ran = ct.run(model, pairs, tmp_path / "run", **OPTIONS)
    again = ct.open_trace(tmp_path / "run")
    for name, each in many.lens.data_vars.items():
        for found in (ran, again):
            if each.dtype == object:
                assert (found.lens[name] == each).all()
            else:
                assert_allclose(found.lens[name], each, rtol=1e-5, atol=1e-5)
    assert again.provenance["options"]["lens"] is True
    assert len(again.lens_means()) == 2 * 5 * mean_lens(many.measurements).sizes["position"]


def test_files_have_its_long_table(many: ct.Trace, tmp_path: Path):
    table = many.to_dataframe("lens")
    assert len(table) == 2 * 5 * (3 * 4 + 7)
    read = pd.read_csv(many.export(tmp_path / "lens.csv", "lens"))
    assert_allclose(read.logit_diff, table.logit_diff, rtol=1e-6)
    assert read.columns.tolist() == table.columns.tolist()
    assert len(pd.read_parquet(many.export(tmp_path / "lens.parquet", "lens"))) == len(table)
    with xr.open_dataset(many.export(tmp_path / "lens.nc", "lens"), engine="h5netcdf") as found:
        assert found.attrs["table"] == "lens"
        assert_allclose(found.answer_prob, many.lens.answer_prob)
    many.to_hub(tmp_path / "card")
    assert len(pd.read_parquet(tmp_path / "card" / "lens.parquet")) == len(table)
    assert "config_name: lens\n  data_files: lens.parquet" in (tmp_path / "card" / "README.md").read_text()


def test_the_document_has_it_and_its_means(single: ct.Trace, many: ct.Trace):
    found = json.loads(json.dumps(document(many.measurements), allow_nan=False))["lens"]
    assert (found["runs"], found["layers"]) == (["clean", "corrupt"], [-1, 0, 1, 2, 3])
    assert_allclose(found["logit_diff"][3][1][2], many.lens.logit_diff.sel(pair="long", run="corrupt", layer=1))
    assert found["answer_prob"][0][0][0][4:] == [None] * 3  # behind the shorter prompt's end
    assert found["top"][0][0][4][:4] == many.lens.top.sel(pair="p0", run="clean", layer=3).values[:4].tolist()
    means = mean_lens(many.measurements)
    assert found["evidence"]["positions"] == means.position.values.tolist()
    assert_allclose(found["evidence"]["logit_diff"], means.logit_diff)
    assert "evidence" not in document(single.measurements)["lens"]
    without = replace(single.measurements, lens=None)
    assert "lens" not in document(without)


def test_words_claim_a_readout_and_no_effect(single: ct.Trace, many: ct.Trace):
    said, last = single.summary(), lens_of(single.measurements).isel(pair=0, token=3)
    (sentence,) = [line for line in said.splitlines() if line.startswith("Logit lens")]
    assert sentence.startswith("Logit lens at the last token (a readout, no effect): in the clean run the answer is ")
    for run, text, other, sign in (("clean", "answer", "foil", 1), ("corrupt", "foil", "answer", -1)):
        part = sentence.split(f"in the {run} run ")[1].split(";")[0].rstrip(".")
        ahead = (sign * last.logit_diff.sel(run=run).values > 0).tolist()
        since = next((n for n in range(5) if all(ahead[n:])), None)  # by another way than layer_from
        where = f"from layer {(since or 0) - 1} on"
        where = {0: "from the embedding on", 4: "behind the last layer alone"}.get(since or 0, where)
        ahead_of = f"not ahead of the {other} in the end" if since is None else f"and ahead of the {other} {where}"
        assert part.endswith(ahead_of)
        first = bool(last[f"{text}_rank"].sel(run=run, layer=3) == 0)
        assert ("not the first choice in the end" in part) is not first
    assert NOT_SHOWN in said
    said_of_all = "Logit lens at the last token, mean logit difference of 4 pairs"
    assert many.summary().count(said_of_all) == 1
    assert many.to_html().count(said_of_all) == 1
    assert many._repr_html_().count(said_of_all) == 1
    assert READ in single.to_html().replace("&#x27;", "'")
    without = ct.Trace(replace(single.measurements, lens=None))
    assert "ogit lens" not in without.summary()
    assert READ not in without.to_html().replace("&#x27;", "'")


def test_the_terminal_has_a_table_of_the_last_token(single: ct.Trace, many: ct.Trace):
    (table,) = tables(single.measurements, most_pairs=4)
    title, heads, *rows = table.splitlines()
    assert title == "logit lens at the last token, pair p (a readout, no effect)"
    assert heads.split() == ["layer", "clean:", "p(answer)", "answer-foil", "corrupt:", "p(answer)", "answer-foil"]
    assert [row.split()[0] for row in rows] == ["embed", "0", "1", "2", "3"]
    end = single.lens.isel(pair=0, layer=-1, token=3)
    told = [float(cell.replace("−", "-")) for cell in rows[-1].split() if re.fullmatch(r"[−\d.e]+", cell)][1:]
    expected = [
        x
        for run in ("clean", "corrupt")
        for x in end[["top_prob", "answer_prob", "logit_diff"]].sel(run=run).to_array().values
    ]
    assert_allclose(told, expected, atol=0.006)
    (mean,) = tables(many.measurements, most_pairs=4)
    assert mean.startswith("logit lens at the last token, mean over 4 pairs")
    assert not list(tables(replace(single.measurements, lens=None), most_pairs=4))


def test_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Any
):
    monkeypatch.setattr(causal_tracing, "load", lambda name, **_: replace(model, source={"kind": "folder"}))

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["causal-tracing", *arguments])
        with pytest.raises(SystemExit, match="^0$"):
            cli.main()
        return capsys.readouterr().out

    asked = ["--model", "tiny", "--clean", " w11 w20 w13 w14", "--corrupt", " w11 w50 w13 w14", "--answer", " w7",
             "--foil", " w8", "--components", "resid_post"]  # fmt: skip
    out = run("trace", *asked, "--lens", "--out", str(tmp_path / "saved"))
    assert "logit lens at the last token, pair pair-0 (a readout, no effect)" in out
    saved = ct.open_trace(tmp_path / "saved")
    assert "--lens" in shlex.split(saved.provenance["command"])
    config = tmp_path / "saved" / "config.toml"
    assert "lens = true" in config.read_text().splitlines()
    again = json.loads(run("trace", "--config", str(config), "--json"))["lens"]
    assert_allclose(again["logit_diff"], saved.lens.logit_diff, rtol=1e-5, atol=1e-5)
    assert "logit lens" not in run("trace", *asked)
    worlds = [json.loads(run("trace", *asked, "--dry-run", "--json", *more))["worlds"] for more in ([], ["--lens"])]
    assert worlds[1] - worlds[0] == 2 * 5
    run("export", str(tmp_path / "saved"), str(tmp_path / "lens.csv"), "--of", "lens")
    assert len(pd.read_csv(tmp_path / "lens.csv")) == 2 * 5 * 4


@needs_browser
def test_a_chosen_cell_says_what_both_runs_would_say_there(browser: Browser, single: ct.Trace, tmp_path: Path):
    with opened(browser, tmp_path / "page.html", single.measurements) as page:
        for layer, token in ((2, 1), (0, 3)):
            page.locator(f'#map td[data-at="{layer},{token}"]').click()
            said = page.locator("#lens").inner_text()
            assert said.startswith(f"Logit lens behind layer {layer}, a readout and no effect")
            for run in ("clean", "corrupt"):
                here = single.lens.isel(pair=0, token=token).sel(run=run, layer=layer)
                part = said.split(f"{run} run: ")[1].split(" · ")[0]
                top, prob, answer, difference = re.fullmatch(
                    r"'(.*)' ([\d.]+), p\(answer\) ([\d.e-]+), answer − foil ([+−][\d.e-]+) logits", part
                ).groups()  # pyright: ignore[reportOptionalMemberAccess]
                assert top == here.top.item()
                numbers = [float(each.replace("−", "-")) for each in (prob, answer, difference)]
                assert_allclose(
                    numbers, here[["top_prob", "answer_prob", "logit_diff"]].to_array(), rtol=0.06, atol=0.006
                )


@needs_browser
def test_what_is_said_of_a_cell_is_rounded_once(browser: Browser, single: ct.Trace, tmp_path: Path):
    found = single.measurements
    assert found.lens is not None
    given = {
        name: xr.full_like(found.lens[name], value) for name, value in (("top_prob", 0.2546), ("answer_prob", 0.01246))
    }
    with opened(browser, tmp_path / "page.html", replace(found, lens=found.lens.assign(given))) as page:
        page.locator('#map td[data-at="2,1"]').click()
        assert page.locator("#lens").inner_text().count(" 0.25, p(answer) 0.012,") == 2


@needs_browser
def test_the_mean_of_a_page_says_it_too_and_pages_without_it_say_nothing(
    browser: Browser, many: ct.Trace, single: ct.Trace, tmp_path: Path
):
    means = mean_lens(many.measurements)
    with opened(browser, tmp_path / "page.html", many.measurements) as page:
        columns = page.locator("#map tbody tr th").all_inner_texts()
        page.locator(f'#map td[data-at="3,{columns.index("last")}"]').click()
        said = page.locator("#lens").inner_text()
        expected = means.logit_diff.sel(run="corrupt", layer=3, position="last").item()
        told = float(re.findall(r"answer − foil ([+−][\d.e-]+)", said)[1].replace("−", "-"))
        assert_allclose(told, expected, rtol=0.01)
    with opened(browser, tmp_path / "page.html", replace(single.measurements, lens=None)) as page:
        page.locator('#map td[data-at="2,1"]').click()
        assert page.locator("#lens").is_hidden()
