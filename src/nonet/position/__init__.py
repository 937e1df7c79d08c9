"""Positions: ALiBi and RoPE with its extensions, and the baselines they are measured against."""

from nonet._lazy import lazy_names
from nonet.registry import Implementation, Method, Op, Part

METHOD = Method(
    name="position",
    title="ALiBi and RoPE",
    slots=("position",),
    papers=("2108.12409", "2104.09864", "2306.15595", "2309.00071", "2402.13753", "2310.13017"),
    idea="order as a penalty on distance, or as an angle between queries and keys",
    use="let a model that was trained on short texts read longer ones",
    ops=(
        Op(
            name="apply_rotary",
            api="nonet.position.api:apply_rotary",
            implementations=(Implementation("reference", "nonet.position.reference:apply_rotary"),),
        ),
    ),
    parts=(
        Part(
            slot="position",
            name="rope",
            target="nonet.position.layer:RotaryPosition",
            config="nonet.position.config:RotaryConfig",
            title="RoPE",
            ops=("apply_rotary",),
        ),
        Part(
            slot="position",
            name="alibi",
            target="nonet.position.layer:AlibiPosition",
            config="nonet.position.config:AlibiConfig",
            title="ALiBi",
        ),
        Part(
            slot="position",
            name="sinusoidal",
            target="nonet.position.layer:SinusoidalPosition",
            title="Sinusoidal",
            role="baseline",
        ),
        Part(
            slot="position",
            name="learned",
            target="nonet.position.layer:LearnedPosition",
            title="Learned",
            role="baseline",
        ),
        Part(
            slot="position",
            name="none",
            target="nonet.position.layer:NoPosition",
            title="No positions",
            role="baseline",
        ),
    ),
)

_HOMES = {
    "AlibiConfig": "nonet.position.config",
    "AlibiPosition": "nonet.position.layer",
    "DynamicNTK": "nonet.position.scaling",
    "LearnedPosition": "nonet.position.layer",
    "Linear": "nonet.position.scaling",
    "Llama3": "nonet.position.scaling",
    "LongRoPE": "nonet.position.scaling",
    "NoPosition": "nonet.position.layer",
    "RotaryConfig": "nonet.position.config",
    "RotaryPosition": "nonet.position.layer",
    "SinusoidalPosition": "nonet.position.layer",
    "YaRN": "nonet.position.scaling",
    "alibi_bias": "nonet.position.api",
    "alibi_slopes": "nonet.position.api",
    "apply_rotary": "nonet.position.api",
    "rotary_angles": "nonet.position.api",
    "rotary_frequencies": "nonet.position.api",
    "sinusoidal": "nonet.position.api",
}
__all__ = [*_HOMES, "METHOD"]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
