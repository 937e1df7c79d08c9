"""MatMul-free transformers: ternary weights, and a gated recurrence in place of attention."""

from nonet._lazy import lazy_names
from nonet.registry import Implementation, Method, Op, Part

_OPS = tuple(
    Op(
        name=name,
        api=f"nonet.matmulfree.api:{name}",
        implementations=(
            *compiled,
            Implementation("torch", f"nonet.matmulfree.impl.torch:{name}"),
            Implementation("reference", f"nonet.matmulfree.reference:{name}"),
        ),
    )
    for name, compiled in (
        (
            "hgrn_scan",
            (Implementation("cpu", "nonet.matmulfree.ops:hgrn_scan", ("cpu",), ("float32", "bfloat16")),),
        ),
        ("ternary_linear", ()),
    )
)

METHOD = Method(
    name="matmulfree",
    title="MatMul-free",
    slots=("mixer", "linear"),
    papers=("2406.02528", "2402.17764"),
    idea="weights of -1, 0 and 1 turn multiplication into addition; a gated recurrence mixes tokens",
    use="run a small language model on a laptop without a GPU",
    ops=_OPS,
    parts=(
        Part(
            slot="mixer",
            name="mlgru",
            target="nonet.matmulfree.layer:MLGRUMixer",
            config="nonet.matmulfree.config:MLGRUConfig",
            title="MatMul-free (MLGRU)",
            letter="G",
            cache="nonet_state",
            recurrent=True,
            ops=("hgrn_scan",),
        ),
        Part(
            slot="linear",
            name="ternary",
            target="nonet.matmulfree.bitlinear:BitLinear",
            title="MatMul-free (ternary)",
        ),
    ),
)

_HOMES = {
    "BitLinear": "nonet.matmulfree.bitlinear",
    "GatedChannelMixer": "nonet.matmulfree.layer",
    "MLGRU": "nonet.matmulfree.layer",
    "MLGRUConfig": "nonet.matmulfree.config",
    "MLGRUMixer": "nonet.matmulfree.layer",
    "PackedTernary": "nonet.matmulfree.packed",
    "hgrn_scan": "nonet.matmulfree.api",
    "pack_ternary": "nonet.matmulfree.packed",
    "ternary_linear": "nonet.matmulfree.api",
}
__all__ = [*_HOMES, "METHOD"]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
