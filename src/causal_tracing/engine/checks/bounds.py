"""How far apart two ways to the same number may be, relative to the largest value: what rounding explains, by dtype.

Measured on the tiny models of all families (two draws of weights, every attention), ten of them with 32 layers, and the
demo model (30 layers, trained), on a CPU. A bound is about five to ten times the worst that was seen, unless said.
"""

# Both from one forward, where rounding is the same on both sides: 2e-7 in float32, 0 in all other types. So narrow a
# bound tells parts that nearly add up from those that do: it is a few times the last bit.
ONE_FORWARD = {"float64": 1e-6, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}

# From forwards of other sizes, or from both engines: 1.5e-7 in float64 (what stays in float32 inside a model, such as a
# router of experts), 1.5e-5 in float32 (demo; the tiny ones 3e-6), 4.6e-3 in float16 (32 layers), 2.2e-2 in bfloat16
# (demo). Half types have a factor of four to five: an engine that does not fit a model was 0.13 apart.
TWO_FORWARDS = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}

# Attention by the model's own function against the pattern that its eager one makes: 9e-7 in float64 (softmax stays in
# float32), 2e-6 in float32, 1.3e-2 in float16. In bfloat16 0.12 (32 layers) and 0.08 (demo), with little room; up to
# 0.4 where rounding sends a token to another expert, which is refused.
PATTERN = {"float64": 1e-5, "float32": 2e-5, "float16": 6e-2, "bfloat16": 2e-1}
