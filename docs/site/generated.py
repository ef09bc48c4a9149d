"""Pages that are made from the code each time the site is built: the Python face, the command line, the errors.

Each function gives the Markdown that stands for `<!-- generated: NAME -->` in a page. What is written is what the code
says of itself: docstrings, the options' declarations, typer's commands, the tree of errors.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from typing import Any

import causal_tracing as ct
from causal_tracing import errors as tree
from causal_tracing.patching.options.declare import GROUPS, specs

VERBS = (
    "load", "check", "preview", "trace", "run", "estimate", "knockout", "paths", "circuit", "ledger", "attribute",
    "compare",
    "read_pairs", "open_trace", "explore", "from_transformer_lens",
)  # fmt: skip
VALUES = ("Pair", "Noise", "Write", "Metric")
RESULTS = ("Trace",)
# What the verbs give back, by where it is: reached by no name of the package, and read all the same.
GIVEN = {
    "Attribution": "experiments.attribution_result",
    "MeanMap": "results.means",
    "Comparison": "experiments.compare",
    "Circuits": "results.circuits",
    "NodeRanking": "results.rankings.nodes",
    "TraceCost": "experiments.cost",
    "Preview": "patching.preview",
    "Checkup": "engine.checks.check",
    "Model": "models.model",
}
KINDS = {"int": "number", "float": "number", "Path": "path", "list[Path]": "paths", "list[str]": "text, repeated"}
ITEM = re.compile(r"^(\w+): (.*)", re.DOTALL)


def api(kind: str) -> str:
    """A list of the package's public names: verbs, values, or results; or what the verbs give back."""
    if {*VERBS, *VALUES, *RESULTS, "CausalTracingError"} != {*ct.__all__}:
        raise RuntimeError("docs/site/generated.py lists other names than causal_tracing.__all__ has.")
    if kind == "given":
        found = [(name, getattr(import_module(f"causal_tracing.{home}"), name)) for name, home in GIVEN.items()]
    else:
        found = [(name, getattr(ct, name)) for name in {"verbs": VERBS, "values": VALUES, "results": RESULTS}[kind]]
    return "\n\n".join(_class(name, each) if inspect.isclass(each) else _verb(name, each) for name, each in found)


def command_line() -> str:
    """Every command with its options, by group, in the order of its help."""
    import typer

    from causal_tracing.cli.app import app

    group = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())  # type: ignore[attr-defined]


def errors() -> str:
    """Every error, from the tree's root down: what it means, what to do, and its exit code."""
    return "\n\n".join(_error(each) for each in _below(tree.CausalTracingError))


def notes() -> str:
    """Every warning of the package's own."""
    return "\n\n".join(_error(each) for each in _below(tree.Note))


def error_tree() -> str:
    """The tree as it is drawn at the top of the module."""
    return f"```text\n{(tree.__doc__ or '').partition(chr(10) * 2)[2].strip()}\n```"


def formats() -> str:
    """The files of others that are read: their keys."""
    from causal_tracing.prompts.formats.table import FORMATS

    return "\n".join(f"- `{name}`" for name in FORMATS)


# Python


def _verb(name: str, verb: Any) -> str:
    own = inspect.unwrap(verb)
    given = inspect.signature(own)
    declared = given.parameters["options"].annotation if "options" in given.parameters else None
    kept = [each for each in given.parameters.values() if each.name != "options"]
    more = ["**options"] if declared else []
    shown = f"{name}({', '.join([*_parameters(kept), *more])})" + _returns(given)
    said, _, example = inspect.cleandoc(own.__doc__ or "").partition("\n\nExample:")
    parts = [markdown(said)]
    if declared:
        parts += [_options(group, declared) for group in GROUPS]
    if example:
        parts += ["Example:", f"```python\n{textwrap.dedent(example.lstrip(chr(10))).rstrip()}\n```"]
    return _directive("py:function", shown, "\n\n".join(filter(None, parts)), module=True)


def _options(group: str, declared: Any) -> str:
    """A table of what is declared of one group."""
    kinds = {each.name: each.type for each in fields(declared)}
    rows = [
        f"| `{name}` | {_code(_type(kinds[name]))} | {_code(repr(spec.default))} "
        f"| {_cell(f'{spec.help} {spec.python}')} |"
        for name, spec in specs(declared).items()
        if spec.group == group
    ]
    return (
        "\n".join([f"*{group}*", "", "| option | type | default | what it is |", "|---|---|---|---|", *rows])
        if rows
        else ""
    )


def _class(name: str, made: type) -> str:
    """A class: what it says of itself, its fields, its properties and methods."""
    shown = name
    if name in (*VALUES, "CausalTracingError"):
        given = inspect.signature(made)
        shown = f"{name}({', '.join(_parameters(list(given.parameters.values())))})"
    parts = [markdown(inspect.getdoc(made) or "")]
    if is_dataclass(made) and name not in VALUES:
        held = [
            f"- `{each.name}` ({_code(_type(each.type))})"
            for each in fields(made)
            if not each.name.startswith("_") and each.default is MISSING and each.default_factory is MISSING
        ]
        parts += ["\n".join(["It holds:", "", *held])] if held else []
    parts += [*_members(made)]
    return _directive("py:class", shown, "\n\n".join(parts), module=True, fence=6)


def _members(made: type) -> Iterator[str]:
    above = [each for each in made.__mro__ if each.__module__.startswith("causal_tracing")]
    if made.__name__ == "Attribution":
        above = above[:1]  # the rest is a Trace's
    seen: set[str] = set()
    for each in above:
        for name, member in vars(each).items():
            if name.startswith("_") or name in seen:
                continue
            seen.add(name)
            held = member.func if hasattr(member, "func") else member.fget if isinstance(member, property) else member
            if not inspect.isfunction(held) or not held.__doc__:
                continue
            of = inspect.signature(held)
            body = markdown(inspect.getdoc(held) or "")
            if held is member:
                kept = _parameters(list(of.parameters.values())[1:])
                yield _directive("py:method", f"{name}({', '.join(kept)}){_returns(of)}", body)
            else:
                yield _directive("py:property", name, body, type=_type(of.return_annotation))


def _directive(kind: str, shown: str, body: str, *, module: bool = False, fence: int = 5, type: str = "") -> str:
    options = [":module: causal_tracing"] if module else []
    options += [f":type: {type}"] if type else []
    return "\n".join([f"{'`' * fence}{{{kind}}} {shown}", *options, "", body, "`" * fence])


def _parameters(given: list[inspect.Parameter]) -> Iterator[str]:
    starred = False
    for each in given:
        if each.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(each.kind, "")
        kind = "" if each.annotation is inspect.Parameter.empty else f": {_type(each.annotation)}"
        default = "" if each.default is inspect.Parameter.empty else f" = {_default(each.default)}"
        yield f"{stars}{each.name}{kind}{default}"


def _default(value: Any) -> str:
    return "{}" if repr(value) == "<factory>" else repr(value)


def _returns(of: inspect.Signature) -> str:
    return "" if of.return_annotation is inspect.Signature.empty else f" -> {_type(of.return_annotation)}"


def _type(annotation: Any) -> str:
    """An annotation as it is written in the code, without the modules' names."""
    if annotation is inspect.Parameter.empty:
        return ""
    text = annotation.__name__ if inspect.isclass(annotation) and "[" not in str(annotation) else str(annotation)
    text = text.replace("'", "").replace("NoneType", "None")
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=\w)", "", text)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|")


def markdown(doc: str) -> str:
    """A docstring as Markdown: paragraphs, `name: text` as a list, indented code as blocks."""
    return "\n\n".join(_paragraph(each) for each in re.split(r"\n\n+", doc.strip("\n")) if each.strip())


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    if lines[0].strip() == "Example:":
        return "Example:\n\n```python\n" + textwrap.dedent("\n".join(lines[1:])) + "\n```"
    if lines[0].lstrip().startswith(">>> "):
        return (
            "```python\n"
            + "\n".join(line.strip().removeprefix(">>> ").removeprefix("... ") for line in lines)
            + "\n```"
        )
    if lines[0].startswith("    "):
        return "```text\n" + textwrap.dedent(text) + "\n```"
    items = re.split(r"\n(?=\w+: )", text)
    if all(map(ITEM.match, items)) and not lines[0].startswith(("Cause: ", "Remedy: ")):
        return "\n".join(f"- `{found[1]}`: {_flat(found[2])}" for found in map(ITEM.match, items) if found)
    return text


def _flat(text: str) -> str:
    return " ".join(line.strip() for line in text.split("\n"))


# The command line


def _command(name: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    usage = " ".join(["causal-tracing", name, *(f"[{each.name.upper()}]..." for each in arguments), "[OPTIONS]"])
    parts = [f"## {name}", f"```text\n{usage}\n```", inspect.cleandoc(command.help or "")]
    groups: dict[str, list[Any]] = {}
    for each in command.params:
        if each.name not in ("help", "install_completion", "show_completion"):
            groups.setdefault(getattr(each, "rich_help_panel", None) or "Options", []).append(each)
    for group in [*(each for each in ("Options", *GROUPS) if each in groups)]:
        rows = [_flag(each) for each in groups[group]]
        parts.append("\n".join([f"*{group}*", "", "| flag | takes | what it is |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _flag(each: Any) -> str:
    names = ", ".join(f"`{name}`" for name in each.opts) if each.param_type_name == "option" else f"`{each.name}`"
    off = ", ".join(f"`{name}`" for name in each.secondary_opts)
    switch = getattr(each, "is_flag", False)
    kind = "" if switch else KINDS.get(_type(each.type_descriptor.annotation), "text")
    default = each.default if not switch and each.default not in (None, (), []) and not callable(each.default) else None
    tail = f" Default: `{default}`." if default is not None and str(default) not in (each.help or "") else ""
    return f"| {names}{f', {off}' if off else ''} | {_cell(kind)} | {_cell(_literal(each.help or '') + tail)} |"


def _literal(text: str) -> str:
    """Help as Markdown: it has none of its own, so that its signs are letters."""
    return re.sub(r"([*_<>\[\]\\`])", r"\\\1", text)


# Errors


def _below(root: type) -> Iterator[type]:
    yield root
    for each in root.__subclasses__():
        if each.__module__ == tree.__name__:
            yield from _below(each)


def _error(error: type) -> str:
    body = markdown(inspect.getdoc(error) or "")
    above = error.__bases__[0]
    code = getattr(error, "exit_code", None)
    tail = f"A kind of `{above.__name__}`" + (f"; exit code {code}." if code else ".")
    return f"### {error.__name__}\n\n{body}\n\n{tail}"
