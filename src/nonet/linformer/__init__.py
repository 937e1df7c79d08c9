"""Linformer: keys and values projected from the length of the text to a fixed number of slots."""

from nonet._lazy import lazy_names
from nonet.registry import Implementation, Method, Op, Part

_OPS = tuple(
    Op(
        name=name,
        api=f"nonet.linformer.api:{name}",
        implementations=(
            Implementation("torch", f"nonet.linformer.impl.torch:{name}"),
            Implementation("reference", f"nonet.linformer.reference:{name}"),
        ),
    )
    for name in ("linformer_attention", "block_linformer_attention")
)

METHOD = Method(
    name="linformer",
    title="Linformer",
    slots=("mixer",),
    papers=("2006.04768",),
    idea="the matrix of attention is nearly of low rank, so keys and values can be summarised",
    use="classify long documents, up to a fixed length, with an encoder",
    ops=_OPS,
    parts=(
        Part(
            slot="mixer",
            name="linformer",
            target="nonet.linformer.layer:LinformerMixer",
            config="nonet.linformer.config:LinformerConfig",
            title="Linformer",
            letter="L",
            cache="nonet_state",
            bidirectional=True,
            ops=("linformer_attention", "block_linformer_attention"),
        ),
    ),
)

_HOMES = {
    "LinformerConfig": "nonet.linformer.config",
    "LinformerMixer": "nonet.linformer.layer",
    "LinformerSelfAttention": "nonet.linformer.layer",
    "block_linformer_attention": "nonet.linformer.api",
    "linformer_attention": "nonet.linformer.api",
    "summarise": "nonet.linformer.api",
}
__all__ = [*_HOMES, "METHOD"]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
