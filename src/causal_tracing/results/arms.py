"""Arms: which run is patched, and what else is done to it. The one list of what can be measured in a cell."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One thing that is measured in every cell.

    `name` is the effect that follows from it, `raw` what the metric in the patched run is called, and `into` the run
    that is patched. `alone`: each layer of a window, or each member of a set, is patched alone, and what they do is
    added up. `severed`: what is frozen behind the patched site. `direct`: what of it is left where the later attention
    at the token that is read is held as in the unedited run, with the MLPs held too ("mlps_frozen") or not
    ("mlps_live").
    """

    name: str
    raw: str
    into: str
    alone: bool = False
    severed: str | None = None
    direct: str | None = None

    @property
    def restores(self) -> bool:
        """Whether something clean is put into the corrupt run."""
        return self.into == "corrupt"

    @property
    def is_direction(self) -> bool:
        """Whether it is one of the two directions, and not something measured beside them."""
        return not self.alone and self.severed is None and self.direct is None


RESTORATION = Arm(name="restoration", raw="restored", into="corrupt")
DISRUPTION = Arm(name="disruption", raw="disrupted", into="clean")
SEVERABLE = ("attn_out", "mlp_out")
DIRECTIONS = {arm.name: arm for arm in (RESTORATION, DISRUPTION)}
SUMS = {
    arm.name: Arm(name=f"{arm.name}_sum", raw=f"{arm.raw}_sum", into=arm.into, alone=True)
    for arm in DIRECTIONS.values()
}
SEVERED = {
    part: Arm(name=f"severed_{part}", raw=f"restored_severed_{part}", into="corrupt", severed=part)
    for part in SEVERABLE
}
MEMBERS = {
    arm.name: Arm(name=f"{arm.name}_of_members", raw=f"{arm.raw}_members", into=arm.into, alone=True)
    for arm in DIRECTIONS.values()
}
DIRECT_NAMES = {"mlps_frozen": "direct_path", "mlps_live": "direct_path_mlps_live"}  # by how MLPs are held
DIRECT = tuple(DIRECT_NAMES)
DIRECT_ARMS = {
    (direct, arm.name): Arm(name=f"{name}_{arm.name}", raw=f"{arm.raw}_{name}", into=arm.into, direct=direct)
    for direct, name in DIRECT_NAMES.items()
    for arm in DIRECTIONS.values()
}
ARMS = (*DIRECTIONS.values(), *SUMS.values(), *MEMBERS.values(), *SEVERED.values(), *DIRECT_ARMS.values())
