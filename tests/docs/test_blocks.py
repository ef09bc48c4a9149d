"""Every block of Python and every command in the README and the pages runs, or says in the line above why not.

1. Blocks of a page run one after the other, in one namespace, in a folder of their own. `<!-- not run: REASON -->`
   above a block leaves it out.
2. For the demo model stands a random one of its layers, heads and tokenizer, and of a few numbers a vector; traces take
   three layers where a page names none, and run one cell again. What is tested is that the code of a page can be run,
   not what it finds.
3. Commands run in this process. Of all of them, also of those that are not run, every flag must be one that there is.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import causal_tracing as ct
from causal_tracing.cli import console
from causal_tracing.cli.app import app
from causal_tracing.models.demo import demo_folder
from causal_tracing.prompts.example import EXAMPLE

ROOT = Path(__file__).parents[2]
PAGES = sorted(each for each in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")) if "_build" not in each.parts)
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n+)?^```(?P<language>[\w-]*)\n(?P<code>.*?)^```$", re.M | re.S
)
SHELL = ("causal-tracing", "pip", "make", "python", "export", "#SBATCH")
FEW = {
    "trace": {"layers": [0, 20, 23], "spot_checks": 1},
    "estimate": {"layers": [0, 20, 23], "spot_checks": 1},
    "attribute": {"verify": 2, "sample": 2, "spot_checks": 1},
    "circuit": {"spot_checks": 1},
    "paths": {"spot_checks": 1},
}
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    reason: str | None

    @property
    def commands(self) -> list[list[str]]:
        """The calls of `causal-tracing`, as words."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [shlex.split(line, comments=True) for line in lines if line.startswith("causal-tracing")]


def blocks(page: Path) -> Iterator[Block]:
    """What of a page is meant to be run: Python, and blocks that begin as a command does."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        shell = found["language"] in ("", "bash") and found["code"].startswith(SHELL)
        if found["language"] != "python" and not shell:
            continue
        line = text[: found.start("code")].count("\n") + 1
        language = "shell" if shell else "python"
        yield Block(page=page, line=line, language=language, code=found["code"], reason=found["reason"])


FOUND = {str(page.relative_to(ROOT)): [*blocks(page)] for page in PAGES}


@pytest.fixture(scope="module")
def stand_in() -> Any:
    """A random model in the demo's place."""
    folder = demo_folder(progress=False)
    sizes = {"hidden_size": 36, "head_dim": 4, "intermediate_size": 8, "initializer_range": 0.2}
    config = AutoConfig.from_pretrained(folder)
    for name, size in sizes.items():
        setattr(config, name, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config).eval()
    return ct.load(network, AutoTokenizer.from_pretrained(folder))


def fewer(verb: str, stand_in: Any) -> Any:
    """The verb, which does less with the stand-in unless it is told what."""
    whole = getattr(ct, verb)

    def asked(model: Any, *given: Any, **named: Any) -> Any:
        return whole(model, *given, **(FEW[verb] if model is stand_in else {}) | named)

    return asked


@pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")
@pytest.mark.parametrize("name", [name for name, each in FOUND.items() if any(block.reason is None for block in each)])
def test_what_a_page_shows_can_be_run(
    name: str, stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    load = ct.load
    given = lambda model, *more, **named: stand_in if isinstance(model, str) else load(model, *more, **named)  # noqa: E731
    monkeypatch.setitem(vars(ct), "load", given)
    for verb in FEW:
        monkeypatch.setitem(vars(ct), verb, fewer(verb, stand_in))
    monkeypatch.setattr(console, "load", lambda model, **_: stand_in)
    pair = ct.Pair(**EXAMPLE)
    names: dict[str, Any] = {"ct": ct, "model": stand_in, "pair": pair, "pairs": ct.read_pairs("facts:capital")[:2]}
    for block in FOUND[name]:
        if block.reason is not None:
            continue
        where = f"{name}, line {block.line}"
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, where, "exec"), names)
        for words in block.commands:
            code = app(words[1:], standalone_mode=False)
            assert not code, (where, words, capsys.readouterr())


@pytest.mark.parametrize("name", [name for name, each in FOUND.items() if any(block.commands for block in each)])
def test_every_flag_that_a_page_names_is_there(name: str):
    for block in FOUND[name]:
        for words in block.commands:
            flags = [word.partition("=")[0] for word in words[1:] if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", word)]
            if len(words) < 2 or words[1].startswith("-"):
                assert {*flags} <= {"--help", "--version", "--install-completion"}, (name, block.line)
                continue
            known = {flag for each in COMMANDS[words[1]].params for flag in (*each.opts, *each.secondary_opts)}
            assert {*flags} <= known | {"--help"}, (name, block.line)


def test_a_block_that_is_not_run_is_left_out_for_a_reason():
    left = [block for each in FOUND.values() for block in each if block.reason is not None]
    assert all(len(block.reason or "") > 10 for block in left)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        marks = len(re.findall(r"^<!-- not run: ", text, re.M))
        assert marks == sum(block.reason is not None for block in FOUND[str(page.relative_to(ROOT))]), page


def test_the_runner_can_fail(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\n1 / 0\n```\n\n<!-- not run: it never ends, ever -->\n```python\nwhile True: pass\n```\n"
    )
    first, second = blocks(page)
    assert (first.line, first.reason, second.reason) == (2, None, "it never ends, ever")
    with pytest.raises(ZeroDivisionError):
        exec(first.code)
    assert sys.version_info >= (3, 11)
