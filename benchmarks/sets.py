"""What the demo model makes of each built-in set: how many pairs it tokenises, and gets right.

python benchmarks/sets.py                   prints the table of docs/datasets.md
python benchmarks/sets.py greater_than      only these rows of it
"""

import sys
from collections import Counter

import causal_tracing as ct
from causal_tracing.experiments.filter import keep_pairs
from causal_tracing.patching.options.trace import Options
from causal_tracing.prompts.datasets import NAMES
from causal_tracing.prompts.pairs import named


def main() -> None:
    """A row for each set and each of its kinds, where there are several."""
    model = ct.load("demo", progress=False)
    print("| set | pairs | clusters | clean run right | prefers the answer | corrupt run prefers the foil |")
    print("|---|---|---|---|---|---|")
    for name in sys.argv[1:] or NAMES:
        pairs = named(ct.read_pairs(name))
        found = {keep: keep_pairs(model, pairs, Options(), keep) for keep in ("all", "first_choice", "preferred")}
        for id, reason in found["all"].failed.items():
            print(f"failed: {id}: {reason}")
        other = [ct.Pair(clean=p.corrupt or "", answer=p.foil or "-", corrupt=p.clean, foil=p.answer) for p in pairs]
        back = keep_pairs(model, named(other), Options(), "preferred")
        kinds = Counter(str(pair.labels["kind"]) for pair in pairs)
        for kind in (None, *(kinds if 1 < len(kinds) < 5 else ())):
            mine = [pair.id for pair in pairs if kind in (None, pair.labels["kind"])]
            clusters = len({pair.cluster or pair.id for pair in pairs if pair.id in mine})
            right, preferred = (sum(p.id in mine for p in found[keep].pairs) for keep in ("first_choice", "preferred"))
            kept = {pair.id for pair in back.pairs}
            foils = sum(f"pair-{n}" in kept for n, pair in enumerate(pairs) if pair.id in mine)
            shares = " | ".join(f"{count} ({100 * count / len(mine):.0f} %)" for count in (right, preferred, foils))
            shown = f"`{name}`" if kind is None else f"`{name}:{kind}`"
            print(f"| {shown} | {len(mine)} | {clusters} | {shares} |")


if __name__ == "__main__":
    main()
