"""FlashAttention: exact attention that never forms the matrix of scores."""

from nonet._lazy import lazy_names
from nonet.registry import Implementation, Method, Op, Part

_OPS = tuple(
    Op(
        name=name,
        api=f"nonet.flash.api:{name}",
        implementations=(
            Implementation("torch", f"nonet.flash.impl.torch:{name}", refuses=("softcap", "return_lse")),
            Implementation("reference", f"nonet.flash.reference:{name}"),
        ),
    )
    for name in ("flash_attention", "flash_attention_varlen")
)

METHOD = Method(
    name="flash",
    title="FlashAttention",
    slots=("mixer",),
    papers=("2205.14135", "2307.08691", "2407.08608", "2603.05451"),
    idea="exact attention, computed tile by tile, in memory linear in the length",
    use="train on texts of many thousand tokens at full quality",
    ops=_OPS,
    parts=(
        Part(
            slot="mixer",
            name="flash",
            target="nonet.flash.layer:FlashMixer",
            config="nonet.flash.config:FlashConfig",
            title="FlashAttention",
            letter="F",
            cache="full_attention",
            bidirectional=True,
            ops=("flash_attention",),
        ),
    ),
)

_HOMES = {
    "FlashConfig": "nonet.flash.config",
    "FlashMixer": "nonet.flash.layer",
    "TiledAttention": "nonet.flash.tiled",
    "Traffic": "nonet.flash.traffic",
    "flash_attention": "nonet.flash.api",
    "flash_attention_varlen": "nonet.flash.api",
    "standard_bytes": "nonet.flash.traffic",
    "tiled_attention": "nonet.flash.tiled",
    "tiled_bytes": "nonet.flash.traffic",
}
__all__ = [*_HOMES, "METHOD"]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
