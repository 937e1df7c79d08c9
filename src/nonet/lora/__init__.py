"""LoRA: what fine-tuning changes in a weight is learned as the product of two thin factors."""

from nonet._lazy import lazy_names
from nonet.registry import Implementation, Method, Op, Part

_OPS = tuple(
    Op(
        name=name,
        api=f"nonet.lora.api:{name}",
        implementations=(
            Implementation("torch", f"nonet.lora.impl.torch:{name}"),
            Implementation("reference", f"nonet.lora.reference:{name}"),
        ),
    )
    for name in ("lora_linear", "grouped_lora")
)

METHOD = Method(
    name="lora",
    title="LoRA",
    slots=("adapter",),
    papers=("2106.09685", "2312.03732", "2402.09353", "2404.02948", "2402.12354"),
    idea="what fine-tuning changes is taken to be of low rank, so only two thin factors are trained",
    use="teach one model the style of ten customers, with a small file for each",
    ops=_OPS,
    parts=(
        Part(
            slot="adapter",
            name="lora",
            target="nonet.lora.adapt:add_lora",
            config="nonet.lora.config:LoraConfig",
            title="LoRA",
            ops=("lora_linear", "grouped_lora"),
        ),
        Part(
            slot="adapter",
            name="dora",
            target="nonet.lora.adapt:add_lora",
            config="nonet.lora.config:LoraConfig",
            title="DoRA",
            role="variant",
            ops=("lora_linear",),
        ),
    ),
)

_HOMES = {
    "LoraConfig": "nonet.lora.config",
    "add_lora": "nonet.lora.adapt",
    "from_peft": "nonet.lora.saved",
    "grouped_lora": "nonet.lora.api",
    "learning_rate_groups": "nonet.lora.rates",
    "lora_linear": "nonet.lora.api",
    "merge_lora": "nonet.lora.merge",
    "remove_lora": "nonet.lora.adapt",
    "select_lora": "nonet.lora.adapt",
    "to_peft": "nonet.lora.saved",
    "unmerge_lora": "nonet.lora.merge",
}
__all__ = [*_HOMES, "METHOD"]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
