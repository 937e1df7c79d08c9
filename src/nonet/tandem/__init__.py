"""Tandem transformers: a large model reads in blocks, and a small one writes from what it has read."""

from nonet._lazy import lazy_names
from nonet.registry import Implementation, Method, Op, Part

METHOD = Method(
    name="tandem",
    title="Tandem transformers",
    slots=("pairing",),
    papers=("2402.08644", "2211.17192", "2302.01318"),
    idea="a large model reads in blocks, and a small one writes from what it has read",
    use="let a large model's answer come sooner, word for word the same",
    ops=(
        Op(
            name="linear_rows",
            api="nonet.tandem.api:linear_rows",
            implementations=(
                Implementation(
                    "cpu",
                    "nonet.tandem.ops:linear_rows",
                    devices=("cpu",),
                    dtypes=("float32", "bfloat16"),
                    refuses=("gradient", "a weight in float16", "a weight in float64"),
                ),
                Implementation("torch", "nonet.tandem.impl.torch:linear_rows"),
                Implementation("reference", "nonet.tandem.reference:linear_rows"),
            ),
        ),
    ),
    parts=(
        Part(
            slot="pairing",
            name="tandem",
            target="nonet.tandem.layer:Tandem",
            config="nonet.tandem.config:TandemConfig",
            title="Tandem",
        ),
        Part(
            slot="pairing",
            name="speculative",
            target="nonet.tandem.generate:speculative_generate",
            title="Speculative decoding",
            role="baseline",
        ),
    ),
)

_HOMES = {
    "Router": "nonet.tandem.router",
    "RouterTraining": "nonet.tandem.router",
    "Shortlist": "nonet.tandem.shortlist",
    "Stats": "nonet.tandem.rounds",
    "Tandem": "nonet.tandem.layer",
    "TandemConfig": "nonet.tandem.config",
    "accept_greedy": "nonet.tandem.accept",
    "accept_sampled": "nonet.tandem.accept",
    "custom_generate": "nonet.tandem.generate",
    "expected_tokens": "nonet.tandem.accept",
    "frequent_tokens": "nonet.tandem.shortlist",
    "linear_rows": "nonet.tandem.api",
    "restore_weights": "nonet.tandem.weights",
    "secondary_from": "nonet.tandem.secondary",
    "speculative_generate": "nonet.tandem.generate",
    "stream_weights": "nonet.tandem.weights",
}
__all__ = [*_HOMES, "METHOD"]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
