"""Every block of Python and every command in the README and the pages runs, or says in the line above why not.

1. Blocks of a page run one after the other, in one namespace, in a folder of their own. `<!-- not run: REASON -->`
   above a block leaves it out.
2. For every model that is loaded by name stands a random one of the demo's layers, heads and tokenizer, and of a few
   numbers a vector; traces take three layers where a page names none and run one cell again, and files that are the
   reader's hold two pairs. What is tested is that the code of a page can be run, not what it finds.
3. Commands run in this process. All of them, also those that are not run, are read by the command line itself: each
   flag and each value as it would be, up to where the command begins its work. "…" stands for what a page leaves out.
"""

import ast
import inspect
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import causal_tracing as ct
from causal_tracing.cli import console
from causal_tracing.cli.app import app
from causal_tracing.errors import InvalidOption
from causal_tracing.models.demo import demo_folder
from causal_tracing.prompts.datasets import rows
from causal_tracing.prompts.example import EXAMPLE

ROOT = Path(__file__).parents[2]
PAGES = sorted(each for each in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")) if "_build" not in each.parts)
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n+)?^```(?P<language>[\w-]*)\n(?P<code>.*?)^```$", re.M | re.S
)
SHELL = ("causal-tracing", "pip", "make", "python", "export", "#SBATCH")
ONE = {"spot_checks": 1}
LAYERS = {"layers": [0, 20, 23]}
FEW = {
    "trace": LAYERS | ONE,
    "run": LAYERS,
    "estimate": LAYERS | ONE,
    "attribute": {"verify": 2, "sample": 2} | ONE,
    "circuit": ONE,
    "paths": ONE,
}
FACT = {"template": "{} is the capital of", "relation_id": "P1376"}
FACTS = [
    {"known_id": n, "subject": subject, "attribute": attribute, "prompt": f"{subject} is the capital of", **FACT}
    for n, (subject, attribute) in enumerate({"Rome": "Italy", "Paris": "France"}.items())
]
APPS = (app, *(each.typer_instance for each in app.registered_groups))
COMMANDS: dict[str, Any] = {
    each.callback.__name__: each.callback for one in APPS if one for each in one.registered_commands if each.callback
}
OPERATORS = ("|", ">", "<", "&&", ";")
USAGE_ERROR = typer.BadParameter.__mro__[1]  # typer has a click of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    reason: str | None

    @property
    def commands(self) -> list[list[str]]:
        """The calls of `causal-tracing`, as words, up to where the shell sends what they print."""
        lines = self.code.replace("\\\n", " ").splitlines()
        found = [shlex.split(line, comments=True) for line in lines if line.startswith("causal-tracing")]
        return [[*takewhile(lambda word: word not in OPERATORS, words)] for words in found]


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


def loading(stand_in: Any) -> Any:
    """`ct.load`, which gives the stand-in for each name and for its own network, asked as `ct.load` can be."""
    load, asked = ct.load, inspect.signature(ct.load)

    def loaded(model: Any, *more: Any, **named: Any) -> Any:
        asked.bind(model, *more, **named)
        return stand_in if isinstance(model, str) or model is stand_in.network else load(model, *more, **named)

    return loaded


def fewer(verb: str, stand_in: Any) -> Any:
    """The verb, which does less with the stand-in unless it is told what."""
    whole = getattr(ct, verb)

    def asked(model: Any, *given: Any, **named: Any) -> Any:
        return whole(model, *given, **(FEW[verb] if model is stand_in else {}) | named)

    return asked


@pytest.mark.filterwarnings("ignore::causal_tracing.errors.Note")
@pytest.mark.parametrize("name", [name for name, each in FOUND.items() if any(block.reason is None for block in each)])
def test_what_a_page_shows_can_be_run(
    name: str, stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(vars(ct), "load", loading(stand_in))
    for verb in FEW:
        monkeypatch.setitem(vars(ct), verb, fewer(verb, stand_in))
    monkeypatch.setattr(console, "load", lambda model, **_: stand_in)
    pair = ct.Pair(**EXAMPLE)
    names: dict[str, Any] = {"ct": ct, "model": stand_in, "pair": pair, "pairs": ct.read_pairs("facts:capital")[:2]}
    names |= {"network": stand_in.network, "tokenizer": stand_in.tokenizer, "nnsight_model": stand_in.network}
    for file, held in (("known_1000.json", FACTS), ("pairs.jsonl", rows("facts:capital")[:2])):
        Path(file).write_text(json.dumps(held), encoding="utf-8")
    for block in FOUND[name]:
        if block.reason is not None:
            continue
        where = f"{name}, line {block.line}"
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, where, "exec"), names)
        for words in block.commands:
            code = app(words[1:], standalone_mode=False)
            assert not code, (where, words, capsys.readouterr())


def not_defined(name: str) -> list[str]:
    """Of `ct`, `model` and `pair` those that the Python of a page uses and does not define before."""
    defined, missing = set[str](), dict[str, None]()
    for block in (each for each in FOUND[name] if each.language == "python"):
        nodes = [*ast.walk(ast.parse(block.code))]
        stored = {each.id for each in nodes if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        stored |= {one.asname or one.name for each in nodes if isinstance(each, ast.Import) for one in each.names}
        used = {each.id for each in nodes if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)}
        missing |= dict.fromkeys(used - stored - defined)
        defined |= stored
    return [each for each in ("ct", "model", "pair") if each in missing]


@pytest.mark.parametrize("name", FOUND)
def test_what_a_page_takes_for_granted_is_said_at_its_head(name: str) -> None:
    missing, text = not_defined(name), (ROOT / name).read_text(encoding="utf-8")
    said = re.search(r"^The code here takes (.+) from \[tracing one pair\]\((?:\.\./)?trace\.md\)\.$", text, re.M)
    assert re.findall(r"`(\w+)`", said[1] if said else "") == missing
    assert said is None or said.start() < text.index("```")


def read(words: list[str]) -> Mapping[str, Any] | None:
    """What a command is called with: its flags read and checked as ever, and nothing done. None: it prints and ends."""
    if len(words) < 2 or words[1].startswith("-") or "--help" in words:
        assert app(words[1:], standalone_mode=False) in (0, None)
        return None
    told: list[Mapping[str, Any]] = []
    command = COMMANDS[words[1]]
    work = command.function

    @wraps(work)
    def instead(*_: Any, **given: Any) -> None:
        told.append(given)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(command, "function", instead)
        app(words[1:], standalone_mode=False)
    (given,) = told
    return given


@pytest.mark.parametrize("name", [name for name, each in FOUND.items() if any(block.commands for block in each)])
def test_every_command_of_a_page_is_one_that_can_be_meant(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in FOUND[name]:
        for words in block.commands:
            read(completed(words, name))


def completed(words: list[str], page: str) -> list[str]:
    """The words with what a page leaves out (a file of options is the TOML on it), and a number for each variable."""
    found = [re.sub(r"\$\w+", "0", word) for word in words if word != "…"]
    if "--config" in found:
        text = (ROOT / page).read_text(encoding="utf-8")
        written = re.search(r"^```toml\n(.*?)^```$", text, re.M | re.S)
        file = Path(found[found.index("--config") + 1])
        file.parent.mkdir(exist_ok=True)
        file.write_text(written[1] if written else 'model = "demo"\n', encoding="utf-8")
    return [*found, "--model", "demo"] if "…" in words and "--model" not in words else found


@pytest.mark.parametrize(
    "words", ["trace --model demo --no-such-flag 1", "trace --model demo --layers 5-2", "paths --model demo --at"]
)
def test_a_command_that_cannot_be_meant_is_seen(words: str) -> None:
    with pytest.raises((InvalidOption, USAGE_ERROR)):
        read(["causal-tracing", *words.split()])


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
