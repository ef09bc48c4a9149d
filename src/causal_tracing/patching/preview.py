"""What was understood, before anything is patched: tokens, positions, the model's first choices, warnings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Backend
from causal_tracing.engine.choose import plain_backend, require_length
from causal_tracing.errors import InvalidPair
from causal_tracing.interventions.edits import Run
from causal_tracing.models.at_rest import made_on_cpu
from causal_tracing.models.model import Model, require_model
from causal_tracing.patching.contrast import Contrast, of_prompts
from causal_tracing.prompts.answers import on_one_line, spelled
from causal_tracing.prompts.pairs import Pair, TokenPair, as_pairs, tokenize_pairs
from causal_tracing.prompts.token_texts import printable, token_text, token_texts

CHOICES = 5
MASKED = -1e6  # log-probabilities below are of words that the model is forbidden to say


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A next token that the model considers, by its text and its id, and its probability."""

    token: str
    prob: float
    id: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Preview:
    """A pair's tokens, the model's first choices after both prompts, and what is worth a warning.

    After noise, the choices are by their mean probability over draws; there are none where noise was not drawn.
    """

    pair: TokenPair
    clean_top: tuple[Choice, ...]
    corrupt_top: tuple[Choice, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"pair {self.pair.id}"]
        for name in ("clean",) if self.pair.noised or self.pair.alone else ("clean", "corrupt"):
            prompt, top = getattr(self.pair, name), getattr(self, f"{name}_top")
            shown = "|".join(map(printable, prompt.strings))
            lines.append(f"  {name:8}{len(prompt.tokens)} tokens  {shown}")
            lines.append("          then      " + "  ".join(f"{choice.token!r} {choice.prob:.2f}" for choice in top))
        if self.pair.noised:
            strings = [f"{position} ({printable(self.pair.clean.strings[position])})" for position in self.pair.noised]
            where = "position" if len(strings) == 1 else "positions"
            return "\n".join([*lines, f"  noise   at {where} {', '.join(strings)}", *self._warned])
        return "\n".join([*lines, *([] if self.pair.alone else self._paired), *self._warned])

    @property
    def _paired(self) -> list[str]:
        """Where the paired tokens differ; and how they are paired, where that is not simply position by position."""
        clean, corrupt = ([*map(printable, prompt.strings)] for prompt in (self.pair.clean, self.pair.corrupt))
        differing = self.pair.differing
        shown = [f"{here} ({clean[here]}/{corrupt[there]})" for here, there in self.pair.slots if here in differing]
        lines = [f"  differ  at {'position' if len(shown) == 1 else 'positions'} {', '.join(shown) or 'none'}"]
        if self.pair.remarks:
            paired = (f"{here}={there} ({clean[here]}/{corrupt[there]})" for here, there in self.pair.slots)
            lines.append(f"  paired  clean=corrupt {', '.join(paired)}")
        return lines

    @property
    def _warned(self) -> list[str]:
        return [f"  warning: {warning}" for warning in self.warnings]


@made_on_cpu()
def preview(
    model: Model, pairs: Pair | Sequence[Pair], *, align: str = "strict", noise: object = None, alone: bool = False
) -> list[Preview]:
    """What is understood of each pair on this model: its tokens, where they differ, first choices, warnings.

    First choices are the five likeliest next tokens of each prompt, with their probabilities. Runs the two
    unedited prompts, and patches nothing. `print` shows a preview; `warnings` is a tuple of sentences.

    model: from `load`.
    pairs: one Pair or several.
    align: how tokens are paired: strict (one by one), suffix (same end), spans (equal roles).
    noise: a Noise, for pairs that are to be corrupted by it: only the clean prompt is run.
    alone: pairs may lack a corrupt prompt, as those of knockouts may: only the clean one is run.

    Raises InvalidPair (MisalignedPair where tokens cannot be paired).

    Example:
        print(ct.preview(model, pair)[0])
    """
    require_model(model)
    tokens = tokenize_pairs(as_pairs(pairs), model.tokenizer, align=align, noise=noise is not None, alone=alone)
    return preview_tokens(model, plain_backend(model), tokens)


def preview_tokens(
    model: Model, backend: Backend, pairs: Sequence[TokenPair], contrasts: Sequence[Contrast] | None = None
) -> list[Preview]:
    """The same for pairs that are tokenised already; with their runs, noised ones too."""
    if contrasts is None:
        contrasts = [
            Contrast(clean=Run(pair.clean.tokens), corrupt=()) if pair.noised else of_prompts(pair) for pair in pairs
        ]
    return understood(model, backend, pairs, contrasts)[0]


def understood(
    model: Model, backend: Backend, pairs: Sequence[TokenPair], contrasts: Sequence[Contrast]
) -> tuple[list[Preview], list[Float[Tensor, " vocab"]]]:
    """Each pair's preview, and what the model expects after its clean prompt: all unedited runs are recorded once."""
    for pair in pairs:
        check_length(model, pair)
    runs = [run for contrast in contrasts for run in (contrast.clean, *contrast.corrupt)]
    expected = dict(zip(runs, log_probs(backend, runs), strict=True))
    both = zip(pairs, contrasts, strict=True)
    return [previewed(model, pair, each, expected) for pair, each in both], [expected[each.clean] for each in contrasts]


def check_known(model: Model, pair: TokenPair) -> None:
    """Raises InvalidPair where a token was added to the tokenizer and not to the model."""
    words = model.vocabulary
    for tokens in (pair.clean.tokens, pair.corrupt.tokens, *pair.answers, *pair.foils):
        for token in tokens:
            if words is not None and token >= words:
                raise InvalidPair(
                    f"pair {pair.id!r} has the token {model.tokenizer.decode([token])!r} (id {token}), and "
                    f"{model.name} knows {words} tokens: it was added to the tokenizer alone. Resize the model's "
                    "embeddings and train them, or use other words."
                )


def _check_said(model: Model, pair: TokenPair, words: int) -> None:
    """Raises InvalidPair where the model has no logit of an answer: its head may have fewer words than it reads."""
    for token in (token for text in (*pair.answers, *pair.foils) for token in text):
        if token >= words:
            raise InvalidPair(
                f"pair {pair.id!r} asks for the token {model.tokenizer.decode([token])!r} (id {token}), and "
                f"{model.name} gives logits of {words} words: it never says it. Use another answer or foil."
            )


def check_length(model: Model, pair: TokenPair) -> None:
    """Raises InvalidPair where the model cannot take so many tokens."""
    length = run_length(pair)
    if model.context and length > model.context and not model.beyond_context:
        raise InvalidPair(
            f"pair {pair.id!r} has {length} tokens; {model.name} takes {model.context} at most. Use shorter prompts."
        )
    require_length(model, length)


def run_length(pair: TokenPair) -> int:
    """The tokens of the longest run."""
    # A text's last token is predicted and never read, so that it takes no place.
    longest = max(len(prompt.tokens) for prompt in (pair.clean, pair.corrupt))
    return longest + pair.longest - 1


def previewed(model: Model, pair: TokenPair, contrast: Contrast, expected: Mapping[Run, Tensor]) -> Preview:
    """The preview of a pair, from what the model expects after each of its runs, in nats."""
    clean, *corrupt = (expected[run] for run in (contrast.clean, *contrast.corrupt))
    _check_said(model, pair, len(clean))
    after = torch.stack(corrupt).exp().mean(0).log() if corrupt else None
    return Preview(
        pair=pair,
        clean_top=choices_of(model, clean),
        corrupt_top=() if after is None else choices_of(model, after),
        warnings=(*pair.notes, *pair.remarks, *_warnings(model, pair, clean, after)),
    )


def log_probs(backend: Backend, runs: Sequence[Run]) -> list[Float[Tensor, " vocab"]]:
    """What the model expects after each run, in nats."""
    recordings = backend.record(runs)
    return [recordings[run].logits[-1].float().log_softmax(-1) for run in runs]


def choices_of(model: Model, log_probs: Tensor) -> tuple[Choice, ...]:
    """The first choices among what the model expects, likeliest first."""
    best = log_probs.topk(min(CHOICES, len(log_probs)))
    both = zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
    return tuple(Choice(token=token_text(token, model.tokenizer), prob=prob, id=token) for token, prob in both)


def _warnings(model: Model, pair: TokenPair, clean: Tensor, corrupt: Tensor | None) -> list[str]:
    warnings = []
    if model.context and run_length(pair) > model.context:
        warnings.append(
            f"the pair has {run_length(pair)} tokens, and {model.name} was made for {model.context} at most: what it "
            "says beyond them is seldom what it can."
        )
    first = int(clean.argmax())
    for what, texts in (("answer", pair.answers), ("foil", pair.foils)):
        warnings += _of_length(model, what, texts)
    for what, texts, said in (
        ("answer", pair.answers, clean),
        ("foil", pair.foils, clean if corrupt is None else corrupt),
    ):
        if texts and all(said[tokens[0]] <= MASKED for tokens in texts):
            warnings.append(
                f"the model masks {_called(pair, what)}, which it never says: by most metrics nothing is measured."
            )
    firsts = [tokens[0] for tokens in pair.answers]
    if first not in firsts:
        said = token_text(first, model.tokenizer)
        rank = int((clean > clean[firsts].max()).sum()) + 1
        warnings.append(
            f"the clean run's first choice is {said!r}, not {_called(pair, 'answer')} "
            f"(choice {rank}): what is traced is not what the model would say."
        )
    if pair.same_tokens and not (pair.noised or pair.alone):
        warnings.append("the two prompts have the same tokens: what is patched between them changes nothing.")
    # With noise there is no other prompt whose answer the foil would be.
    if corrupt is None or pair.noised or not pair.foils or pair.several_tokens:
        return warnings
    if preferred(pair, corrupt) > 0:
        warnings.append(
            f"after the corrupt prompt the model still prefers {_called(pair, 'answer')} to {_called(pair, 'foil')}."
        )
    return warnings


def preferred(pair: TokenPair, expected: Float[Tensor, " vocab"]) -> float:
    """By how much answers of one token are preferred to such foils, in nats."""
    answers, foils = ([tokens[0] for tokens in texts] for texts in (pair.answers, pair.foils))
    return float(expected[answers].logsumexp(-1) - expected[foils].logsumexp(-1))


def _called(pair: TokenPair, what: str) -> str:
    """The answer or the foil, as a sentence has it."""
    texts = getattr(pair.pair, what)
    return f"the {what} {texts!r}" if isinstance(texts, str) else f"one of the {what}s {on_one_line(spelled(texts))}"


def _of_length(model: Model, what: str, texts: Sequence[tuple[int, ...]]) -> Iterator[str]:
    """How texts of several tokens are scored."""
    longest = max(texts, key=len, default=())
    if len(longest) < 2:
        return
    said = token_texts(longest, model.tokenizer)
    several = sum(len(tokens) > 1 for tokens in texts)
    begin = f"the {what} is" if len(texts) == 1 else f"{several} of {len(texts)} {what}s are several tokens, up to"
    yield (
        f"{begin} {len(longest)} tokens ({said}): scored by the sum of their log-probabilities, each given those "
        f"before it{'' if len(texts) == 1 else ', and the set by the sum of the probabilities'}."
    )
