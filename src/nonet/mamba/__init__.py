"""Mamba: a state space whose transition each token chooses."""

from nonet._lazy import lazy_names
from nonet.registry import Implementation, Method, Op, Part

_OPS = tuple(
    Op(
        name=name,
        api=f"nonet.mamba.api:{name}",
        implementations=(
            Implementation(
                "cpu",
                f"nonet.mamba.ops:{name}",
                devices=("cpu",),
                dtypes=("float32", "bfloat16"),
                refuses=("gradient",) if name == "mamba_step" else (),
            ),
            Implementation("torch", f"nonet.mamba.impl.torch:{name}"),
            Implementation("reference", f"nonet.mamba.reference:{name}"),
        ),
    )
    for name in ("selective_scan", "causal_conv1d", "mamba_step")
)

METHOD = Method(
    name="mamba",
    title="Mamba",
    slots=("mixer",),
    papers=("2312.00752",),
    idea="a recurrence that decides, token by token, what to keep and what to forget",
    use="read a log of any length with a memory of constant size",
    ops=_OPS,
    parts=(
        Part(
            slot="mixer",
            name="mamba",
            target="nonet.mamba.layer:MambaMixer",
            config="nonet.mamba.config:MambaConfig",
            title="Mamba",
            letter="M",
            cache="nonet_state",
            recurrent=True,
            ops=("selective_scan", "causal_conv1d", "mamba_step"),
        ),
    ),
)

_HOMES = {
    "Mamba": "nonet.mamba.layer",
    "MambaConfig": "nonet.mamba.config",
    "MambaMixer": "nonet.mamba.layer",
    "MambaState": "nonet.mamba.layer",
    "causal_conv1d": "nonet.mamba.api",
    "mamba_step": "nonet.mamba.api",
    "selective_scan": "nonet.mamba.api",
}
__all__ = [*_HOMES, "METHOD"]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
