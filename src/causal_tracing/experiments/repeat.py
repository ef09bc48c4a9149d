"""How a result is made again: the command, or the configuration file, with what must be said and no more."""

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from causal_tracing.interventions.write import Write, checked_write
from causal_tracing.models.model import Model
from causal_tracing.patching.options.declare import said, specs
from causal_tracing.patching.options.estimate import EstimateOptions
from causal_tracing.patching.options.texts import write_tensors
from causal_tracing.patching.options.trace import Options
from causal_tracing.prompts.answers import TARGETS, spelled
from causal_tracing.prompts.pairs import PLAIN_FIELDS, Pair
from causal_tracing.results.storage.atomic import write_text, write_whole
from causal_tracing.results.units import is_function

PAIRS, REFERENCE, TENSORS, CONFIG = "pairs.jsonl", "reference.txt", "tensors.safetensors", "config.toml"
FILES = {"reference": REFERENCE, "tensors": TENSORS}  # the flags whose values a command line names by a file
LONGEST = 20_000  # characters of one flag: systems take some hundred thousand in all, and no one reads them


def pair_to_dict(pair: Pair) -> dict[str, Any]:
    """The fields of a pair that were given, as a row of a pairs file has them: what is read again is the same."""
    row = {field.name: getattr(pair, field.name) for field in dataclasses.fields(pair)}
    return {name: _as_json(value) for name, value in row.items() if value}


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        # As JSON reads it again: a label's numbers as names are texts there, which stand in another order.
        return json.loads(json.dumps(dict(value)))
    return list(value) if isinstance(value, tuple) else value


def command(
    model: Model,
    pairs: Sequence[Pair],
    options: Mapping[str, Any],
    run: Mapping[str, str] | None = None,
    *,
    declared: type = Options,
) -> str | None:
    """The command line that makes the result again; None for a model that was handed in from memory, or a metric
    that is a function.

    `options` are those of the record. `run` has what is asked of a run folder, whose pairs always are a file. Several
    pairs are named as `pairs.jsonl`: the pairs of the provenance, one JSON object a line; `reference.txt` holds the
    reference prompts of the options, one a line, and `tensors.safetensors` the tensors given. Where an option is longer
    than a command line takes (scores of every edge), the command names `config.toml`.
    """
    asked = _asked(model, pairs, alone=run is None)
    if asked is None or is_function(options.get("metric")):
        return None
    texts = {name: spec.text for name, spec in specs(declared).items() if spec.text}
    flags = asked | {
        flag: FILES.get(flag, value)
        for name, kept in said(declared, options).items()
        for flag, value in texts[name].write(name, kept).items()
    }
    if any(len(str(value)) > LONGEST for value in flags.values()):
        return shlex.join(["causal-tracing", "trace", "--config", CONFIG])
    words = ["causal-tracing", "attribute" if declared is EstimateOptions else "trace"]
    for name, value in (flags | dict(run or {})).items():
        words += _words(name, value)
    return shlex.join(words)


def config(
    model: Model, pairs: Sequence[Pair], options: Mapping[str, Any], run: Mapping[str, str] | None = None
) -> str | None:
    """The file, in TOML, from which `causal-tracing trace --config` makes the result again; None as of `command`.

    It lies beside the files that it names: `pairs.jsonl`, and the tensors given.
    """
    asked = _asked(model, pairs, alone=run is None)
    if asked is None or is_function(options.get("metric")):
        return None
    asked["model"] = model.source.get("path", model.name)  # a folder is found from anywhere
    values = asked | said(Options, options)
    if "tensors" in values.get("write", ()):
        values["write"] = values["write"] | {"tensors": TENSORS}
    if "noise" in values:
        values["noise"] = {name: each for name, each in values["noise"].items() if name != "rome"}
    lines = [f"{name} = {_toml(value)}" for name, value in (values | dict(run or {})).items()]
    return "\n".join([f"# causal-tracing trace --config {CONFIG} --out FOLDER does this again.", *lines, ""])


def keep_config(
    folder: Path,
    model: Model,
    pairs: Sequence[Pair],
    options: Mapping[str, Any],
    *,
    write: str | Write,
    run: Mapping[str, str] | None = None,
) -> None:
    """Writes `config.toml` into a folder of results, and the tensors of `write` beside it. Raises MachineError."""
    text, tensors = config(model, pairs, options, run), checked_write(write).tensors
    if text is None or (folder / CONFIG).exists():
        return
    if tensors:
        write_whole(folder / TENSORS, lambda scratch: write_tensors(scratch, tensors))
    write_text(folder / CONFIG, text)


def _asked(model: Model, pairs: Sequence[Pair], *, alone: bool) -> dict[str, Any] | None:
    """The model and the pairs: a single pair by its fields, where they say all of it and it is asked for alone."""
    # No command line could name what is in this process's memory.
    if model.source.get("kind") in (None, "memory") or "nnsight" in model.source:
        return None
    found: dict[str, Any] = {"model": model.name}
    if model.source.get("commit"):  # a branch moves on; the commit does not
        found["revision"] = model.source["commit"]
    if model.source["kind"] == "ndif":
        found["remote"] = True
    # At NDIF the server says which type a model has.
    elif model.dtype != "float32":
        found["dtype"] = model.dtype
    # A map from modules to devices is no flag.
    if model.recipe is not None and isinstance(model.recipe.device_map, str):
        found["device_map"] = model.recipe.device_map
    # Labels and spans have no flags: a pair that has any is named as a file.
    if not (alone and len(pairs) == 1 and {*pair_to_dict(pairs[0])} <= {*PLAIN_FIELDS, "id", "cluster", "chat"}):
        return found | {"pairs": PAIRS}
    (pair,) = pairs
    fields = {name: getattr(pair, name) for name in PLAIN_FIELDS}
    fields |= {name: spelled(fields[name]) or None for name in TARGETS}
    return (
        found | ({"chat": True} if pair.chat else {}) | {n: each for n, each in fields.items() if each not in (None, 0)}
    )


def _words(name: str, value: Any) -> list[str]:
    """A flag as words of the command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if name in PLAIN_FIELDS:  # a prompt may begin with a dash
        return [f"--{flag}={value}"]
    return [f"--{flag}", str(value)]


def _toml(value: Any) -> str:
    """A plain value as TOML has it, on one line. What is None is left out of a table."""
    if isinstance(value, Mapping):
        pairs = (f"{_key(key)} = {_toml(each)}" for key, each in value.items() if each is not None)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):  # JSON's escapes are TOML's; of the control characters it leaves one as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)
