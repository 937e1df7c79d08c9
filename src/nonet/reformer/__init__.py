"""Reformer: attention among tokens that hash alike, and residuals that need no memory."""

from nonet._lazy import lazy_names
from nonet.registry import Implementation, Method, Op, Part

METHOD = Method(
    name="reformer",
    title="Reformer",
    slots=("mixer",),
    papers=("2001.04451",),
    idea="a query looks only among the keys that hash alike; layers are undone instead of stored",
    use="train a deep model on very long texts where memory is short",
    ops=(
        Op(
            name="lsh_attention",
            api="nonet.reformer.api:lsh_attention",
            implementations=(
                Implementation("torch", "nonet.reformer.impl.torch:lsh_attention"),
                Implementation("reference", "nonet.reformer.reference:lsh_attention"),
            ),
        ),
    ),
    parts=(
        Part(
            slot="mixer",
            name="reformer",
            target="nonet.reformer.layer:ReformerMixer",
            config="nonet.reformer.config:ReformerConfig",
            title="Reformer",
            letter="R",
            cache="nonet_state",
            bidirectional=True,
            ops=("lsh_attention",),
        ),
        Part(
            slot="position",
            name="axial",
            target="nonet.reformer.axial:AxialPositions",
            config="nonet.reformer.config:AxialConfig",
            title="Axial",
            role="variant",
        ),
    ),
)

_HOMES = {
    "AxialConfig": "nonet.reformer.config",
    "AxialPositions": "nonet.reformer.axial",
    "ReformerConfig": "nonet.reformer.config",
    "ReformerMixer": "nonet.reformer.layer",
    "ReversibleStack": "nonet.reformer.reversible",
    "chunked": "nonet.reformer.chunking",
    "lsh_attention": "nonet.reformer.api",
    "lsh_buckets": "nonet.reformer.api",
    "lsh_rotations": "nonet.reformer.api",
}
__all__ = [*_HOMES, "METHOD"]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
