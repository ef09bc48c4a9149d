"""docs/families.md: what holds on each model type, from the sweep's results."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers

import causal_tracing
from model_types.examine import ASKED, BOUND, HEADS, THREE, WHOLE, Result
from model_types.mixture import MIXTURE
from model_types.prompts import LONG, SHORT
from model_types.recipes import TYPES
from model_types.sweep import ROOT

PAGE = ROOT / "docs" / "families.md"
ORDER = ("WRONG", "TRACEBACK", "refused", "partial", "exact", "not buildable")
TORCH = torch.__version__.partition("+")[0]
BAD = ("WRONG", "TRACEBACK")


def counts(results: Iterable[Result]) -> str:
    """Such as "exact 210, partial 30"."""
    found = Counter(result["verdict"] for result in results)
    return ", ".join(f"{name} {found[name]}" for name in ORDER if found[name])


def page(results: Sequence[Result]) -> str:
    """The whole page."""
    types = [result for result in results if result["type"] in TYPES]
    variants = [result for result in results if result["type"] not in TYPES]
    return "\n".join(
        [
            "# Model types",
            "",
            f"""\
What the tool does on every model type that transformers has for causal or image-text-to-text models. Each is built
tiny, with random weights; the tool traces it both ways, and every cell is held against an oracle that shares no code
with it: bare torch hooks that find the layers, and what each adds to the residual stream, by behaviour alone. Prompts
are text alone, of {SHORT.length} tokens and of {LONG.length}: longer than every window and block of these models.
`make families` writes this page.

causal-tracing {causal_tracing.__version__}, transformers {transformers.__version__}, torch {TORCH}.

- {len(types)} types: {counts(types)}.
- {len(variants)} variants of them: {counts(variants)}.

*exact*: {", ".join(THREE)} agree to {BOUND:.0e} of the largest logit, and so does all else that is offered. *partial*:
what is offered agrees, the rest is refused, with the reason below. *refused*: nothing is offered. What stands in
brackets was traced, and the oracle could not check it. *of mixtures*: routers, what experts read, and single experts
([what these are](experts.md)). *worst* is the largest difference from the oracle, in shares of the largest logit.
{rounding(results)}""",
            *section("Types", types),
            *section("Variants", variants),
        ]
    )


def rounding(results: Iterable[Result]) -> str:
    """Where float32 could say no more, and by how much the two sides were apart there. Empty if nowhere."""
    found = [
        (result["type"], each["rounded"])
        for result in results
        for entry in result.get("components", {}).values()
        for each in entry["prompts"].values()
        if "rounded" in each
    ]
    if not found:
        return ""
    cells, largest = sum(each["cells"] for _, each in found), max(each["largest"] for _, each in found)
    types = ", ".join(dict.fromkeys(name for name, _ in found))
    return f"""
Left out of it are {cells} cells ({types}) where the two sides differ by up to {largest:.0e}, and where the oracle's own
answer moves by more than that when what is written (of experts: what layers read, too) changes in the last place of
float32.
"""


def section(title: str, results: Sequence[Result]) -> Iterator[str]:
    """A heading, its table, and the reasons."""
    yield from (f"## {title}", "")
    yield "| type | verdict | layers | engine | components | heads, neurons | of mixtures | worst |"
    yield "|---|---|---|---|---|---|---|---|"
    yield from (row(result) for result in sorted(results, key=lambda result: result["type"]))
    yield ""
    for verdict in ORDER:
        reasons = [result for result in results if result["verdict"] == verdict and result.get("why")]
        if not reasons:
            continue
        yield from (f"### {title}: {verdict}", "")
        for result in sorted(reasons, key=lambda result: result["type"]):
            yield f"- **{result['type']}**: {escaped(result['why'])}{beside(result)}"
        yield ""


def row(result: Result) -> str:
    entries: Mapping[str, Result] = result.get("components", {})
    engine = "/".join(dict.fromkeys(result.get("engine", {}).values()))
    cells = (
        result["type"],
        result["verdict"],
        str(result.get("layers") or result.get("oracle", {}).get("layers") or ""),
        engine,
        offered(entries, WHOLE),
        offered(entries, (*HEADS, "neurons")),
        offered(entries, MIXTURE),
        worst(entries),
    )
    return f"| {' | '.join(cells)} |"


def offered(entries: Mapping[str, Result], names: Sequence[str]) -> str:
    """Those that were traced; in brackets those that the oracle could not check."""
    there = [name for name in names if entries.get(name, {}).get("prompts")]
    return " ".join(name if checked(entries[name]) else f"({name})" for name in there)


def checked(entry: Result) -> bool:
    return any(found.get("cells") for found in entry["prompts"].values())


def worst(entries: Mapping[str, Result]) -> str:
    found = [
        each["worst"]
        for name in ASKED
        if name in entries
        for each in entries[name]["prompts"].values()
        if "worst" in each
    ]
    return f"{max(found):.0e}" if found else ""


def beside(result: Result) -> str:
    """What the oracle found where the tool refuses."""
    oracle: dict[str, Any] = result.get("oracle", {})
    if result["verdict"] == "not buildable" or not oracle:  # its process may have ended before
        return ""
    if "why" in oracle:
        return f" *The oracle:* {escaped(oracle['why'])}."
    facts = [f"{oracle['layers']} layers", f"what they add: {'; '.join(oracle['split'])}", *oracle["notes"]]
    facts += [] if oracle["causal"] else ["later tokens change earlier logits"]
    facts += [] if oracle["repeatable"] else ["two runs differ"]
    return f" *The oracle:* {escaped(', '.join(facts))}."


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
