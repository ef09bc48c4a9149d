"""What a grid says of its cells: the layers of a window, of components that some layers lack."""

from causal_tracing.patching.grid import BlockGrid
from causal_tracing.patching.windows import Windows
from causal_tracing.results.arms import RESTORATION
from causal_tracing.results.site_kinds import BLOCKS

LAYERS = (0, 1, 2, 3)


def test_a_window_with_a_layer_that_lacks_the_component_is_none() -> None:
    """The first layer of many mixtures is dense: a window that holds it is never patched."""
    grid = BlockGrid(
        kind=BLOCKS,
        components=("router", "mlp_out"),
        layers=LAYERS,
        columns=(0,),
        arms=(RESTORATION,),
        windows=Windows(widths={"router": 2, "mlp_out": 2}, among=LAYERS),
        having={"router": (1, 2, 3), "mlp_out": LAYERS},
    )
    _, first = grid.labels["window_first"]
    _, last = grid.labels["window_last"]
    assert first.tolist() == [[-1, 1, 2, -1], [0, 1, 2, -1]]
    assert last.tolist() == [[-1, 2, 3, -1], [1, 2, 3, -1]]
    assert [grid.around("router", layer) for layer in LAYERS] == [(), (1, 2), (2, 3), ()]
