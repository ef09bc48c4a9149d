"""Noise on a subject, as a value: how strong, and how it is drawn."""

from dataclasses import dataclass
from numbers import Real

from causal_tracing import validation
from causal_tracing.errors import InvalidOption

MOST_DRAWS = 100_000  # each is a run of the model: more is a slip of the finger


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Noise of standard deviation `scale` · σ on the subject's embeddings, in so many draws (Meng et al. 2022).

    σ is the standard deviation of all numbers that the embedding gives for the tokens of the pair's own prompt, as
    measured where the noise is added; `sigma` sets it instead. Each draw has a seed of its own, made of `seed`, the
    prompt's and the noised tokens and the draw's number. `rome` belongs to preset="rome": σ is measured over all
    pairs' subjects tokenised alone, and all prompts share the draws of numpy's RandomState(1), as in ROME's code.
    Raises InvalidOption.

    Example:
        pair = ct.Pair(clean="The Colosseum is located in the city of", subject="The Colosseum", answer=" Rome")
        ct.trace(model, pair, noise=ct.Noise(scale=3.0, draws=10))
    """

    scale: float = 3.0
    draws: int = 10
    seed: int = 0
    sigma: float | None = None
    rome: bool = False

    def __post_init__(self) -> None:
        strengths = (self.scale, 0 if self.sigma is None else self.sigma)
        if not all(isinstance(strength, Real) and 0 <= strength < float("inf") for strength in strengths):
            raise InvalidOption(f"Noise needs a finite strength of 0 or more: scale={self.scale}, sigma={self.sigma}.")
        validation.whole("The number of draws", self.draws, least=1, most=MOST_DRAWS)
        validation.whole("The seed of noise", self.seed, least=0)
