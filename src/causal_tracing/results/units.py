"""The metrics that are taken of the same logits, in the order of every array, with their units."""

UNITS = {
    "logit_diff": "logits",
    "log_prob": "nats",
    "logit": "logits",
    "prob": "probability",
    "prob_diff": "probability",
    "neg_kl": "nats",
    "neg_rank": "ranks",
    "entropy": "nats",
}
METRICS = tuple(UNITS)
NEED_FOIL = ("logit_diff", "prob_diff")
