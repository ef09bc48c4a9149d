"""What is understood of a pair while it is typed: tokens, how they pair, the model's first choices, what is wrong.

1. Each prompt alone: its tokens, and what the model would say after it. Both are shown whatever else is wrong.
2. An answer or foil that is missing is the model's own first choice.
3. The pair: which tokens are patched for each other. Prompts of unequal lengths are shown where they part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from causal_tracing.engine.backend import Backend
from causal_tracing.errors import InputError, InvalidPair, MisalignedPair, ModelError
from causal_tracing.explorer.asked import PROMPTS, Asked, of_field
from causal_tracing.explorer.jobs import said
from causal_tracing.interventions.edits import Run
from causal_tracing.models.model import Model
from causal_tracing.patching.contrast import of_prompts
from causal_tracing.patching.preview import Choice, choices_of, log_probs, previewed
from causal_tracing.prompts.alignment import BOTH_SUBJECTS, BY_ROLES, OTHERWISE
from causal_tracing.prompts.notes import ANOTHER
from causal_tracing.prompts.pairs import Pair, TokenPair, tokenize
from causal_tracing.prompts.tokens import encode, token_strings
from causal_tracing.report.page.text import visible

OTHER_WAYS = ("spans", "suffix")  # of pairing tokens, where there are not equally many
BUTTONS = {
    OTHERWISE: "Or pair what they share, by a button below: by suffix (the same end), or by spans (equal roles).",
    BY_ROLES: "tokens are paired by their roles",
    ANOTHER: "Select it elsewhere in the text to take that one.",
    BOTH_SUBJECTS: "Select the subject in both texts, or pair them by suffix.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt's tokens, and what the model would say after it."""

    text: str
    run: Run
    strings: tuple[str, ...]
    choices: tuple[Choice, ...]
    expected: Any


def understand(model: Model, backend: Backend, asked: Asked, limit: int) -> dict[str, Any]:
    """What is understood, as plain values; `error` says what is wrong, and where. Runs both prompts once."""
    prompts = read_prompts(model, backend, asked.pair, limit)
    found: dict[str, Any] = {"sides": {name: _side(each) for name, each in prompts.items()}, "error": None}
    if len(prompts) < len(PROMPTS):
        return found | {"answer": None, "foil": None, "pairing": None, "warnings": []}
    complete = completed(asked.pair, prompts, model)
    found |= {"answer": complete.get("answer"), "foil": complete.get("foil"), "pairing": None, "warnings": []}
    try:
        tokens = paired(complete, model, asked.options.get("align", "strict"))
    except (InputError, ModelError) as error:
        offers = OTHER_WAYS if isinstance(error, MisalignedPair) else ()
        return found | {"error": said(error), "part": _parting(*_ids(prompts)), "offers": list(offers)}
    known = {each.run: each.expected for each in prompts.values()}
    shown = previewed(model, tokens, of_prompts(tokens), known)
    return found | {
        "pairing": [list(slot) for slot in tokens.slots],
        "differing": list(tokens.differing),
        "warnings": [visible(_as_on_the_page(each)) for each in shown.warnings],
    }


def paired(fields: Mapping[str, Any], model: Model, align: str) -> TokenPair:
    """The pair as tokens. Raises InputError, with the field of the page that it belongs to."""
    named = {"subject": "subject", "corrupt_subject": "subject", "answer": "answer", "foil": "answer"}
    try:
        return tokenize(Pair(**fields), model.tokenizer, align=align)
    except MisalignedPair as error:
        told = MisalignedPair(_as_on_the_page(str(error)))
        told.add_note("align")
        raise told from None
    except InputError as error:
        words = str(error)
        place = next((field for name, field in named.items() if f"{name} " in words or f"{name}=" in words), "clean")
        error.add_note(place)
        raise


def _as_on_the_page(words: str) -> str:
    """What is said of Python's arguments, said of the page's buttons."""
    for argument, button in BUTTONS.items():
        words = words.replace(argument, button)
    return words


def completed(fields: Mapping[str, Any], prompts: Mapping[str, Prompt], model: Model) -> dict[str, Any]:
    """The pair's fields with the model's own choices where answer or foil are missing; never twice the same."""
    answer = fields.get("answer") or _first("clean", prompts, model, None)
    return {**fields, "answer": answer, "foil": fields.get("foil") or _first("corrupt", prompts, model, answer)}


def _first(side: str, prompts: Mapping[str, Prompt], model: Model, taken: str | None) -> str:
    """The first choice that stays a token of its own behind both prompts: some would grow together with a word."""
    choices = [choice for choice in prompts[side].choices if choice.token != taken]
    whole = (choice.token for choice in choices if all(_stays(choice, each, model) for each in prompts.values()))
    return next(whole, choices[0].token)


def _stays(choice: Choice, prompt: Prompt, model: Model) -> bool:
    try:
        ids, _ = encode(prompt.text + choice.token, model.tokenizer)
    except InputError:  # a toy knows whole words alone
        return False
    return tuple(ids) == (*prompt.run.tokens, choice.id)


def check_tokens(fields: Mapping[str, Any], model: Model, limit: int) -> None:
    """Raises InvalidPair where a prompt is longer than the explorer, or the model, takes."""
    for name in PROMPTS:
        if fields.get(name):
            with of_field(name):
                _encoded(name, fields[name], model, limit)


def _encoded(name: str, text: str, model: Model, limit: int) -> tuple[list[int], Any]:
    ids, offsets = encode(text, model.tokenizer)
    most = min(limit, model.context or limit)
    if len(ids) > most:
        how = "start the explorer with a larger --limit-tokens" if most == limit else "that is what the model takes"
        raise InvalidPair(
            f"The {name} prompt has {len(ids)} tokens, and {most} are taken at most. Use a shorter one; {how}."
        )
    return ids, offsets


def read_prompts(model: Model, backend: Backend, fields: Mapping[str, Any], limit: int) -> dict[str, Prompt]:
    """The prompts that are there already, both run in one go."""
    read = _tokens(model, fields, limit)
    if not read:
        return {}
    expected = log_probs(backend, [run for run, _ in read.values()])
    return {
        name: Prompt(text=fields[name], run=run, strings=strings, choices=choices_of(model, each), expected=each)
        for (name, (run, strings)), each in zip(read.items(), expected, strict=True)
    }


def spelled(model: Model, asked: Asked, limit: int) -> dict[str, Any]:
    """The tokens of the prompts that are there, and where equally many of them differ; needs no run of the model."""
    read = _tokens(model, asked.pair, limit)
    found: dict[str, Any] = {"sides": {name: {"tokens": _shown(strings)} for name, (_, strings) in read.items()}}
    ids = [run.tokens for run, _ in read.values()]
    if len(ids) < len(PROMPTS) or asked.options.get("align", "strict") != "strict":
        return found
    if (part := _parting(*ids)) is not None:
        return found | {"part": part}
    differing = [n for n, (clean, corrupt) in enumerate(zip(*ids, strict=True)) if clean != corrupt]
    return found | {"pairing": [[n, n] for n in range(len(ids[0]))], "differing": differing}


def _tokens(model: Model, fields: Mapping[str, Any], limit: int) -> dict[str, tuple[Run, tuple[str, ...]]]:
    """The prompts that are there as runs, with the texts of their tokens."""
    read: dict[str, tuple[Run, tuple[str, ...]]] = {}
    for name in PROMPTS:
        text = fields.get(name)
        if not text:
            continue
        with of_field(name):
            ids, offsets = _encoded(name, text, model, limit)
            read[name] = Run(tuple(ids)), token_strings(text, ids, offsets, model.tokenizer)
    return read


def _shown(strings: Sequence[str]) -> list[str]:
    return [visible(text) for text in strings]


def _side(prompt: Prompt) -> dict[str, Any]:
    return {
        "tokens": _shown(prompt.strings),
        "choices": [{"token": c.token, "shown": visible(c.token), "prob": round(c.prob, 2)} for c in prompt.choices],
    }


def _ids(prompts: Mapping[str, Prompt]) -> list[Sequence[int]]:
    return [prompts[name].run.tokens for name in PROMPTS]


def _parting(clean: Sequence[int], corrupt: Sequence[int]) -> int | None:
    """The first position at which the two prompts are not of the same token; None where lengths are equal."""
    if len(clean) == len(corrupt):
        return None
    both = zip(clean, corrupt, strict=False)
    return next((n for n, (a, b) in enumerate(both) if a != b), min(len(clean), len(corrupt)))
