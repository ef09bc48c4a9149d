"""The names that options choose among. Nothing heavy is loaded for them: every `--help` needs them."""

from causal_tracing.results.units import METRICS

BLOCKS = ("resid_post", "attn_out", "mlp_out")  # the components that are traced unless others are asked for
RANKED = tuple(name for name in METRICS if name != "entropy")  # entropy is shown raw, and never an effect
SMOOTH = ("logit_diff", "log_prob", "logit", "prob", "prob_diff")  # those that have a gradient
SITE_METHODS = ("atp", "ig")
PATH_METHODS = ("eap", "eap-ig", "reception")
METHODS = (*SITE_METHODS, *PATH_METHODS)
ENGINES = ("auto", "packed", "replay")
PRESETS = ("rome",)
CONTROLS = ("random-weights", "shuffled-pairs")
KEEP = ("all", "first_choice", "preferred")
