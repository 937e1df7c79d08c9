"""Prompt learning: a frozen model is asked in the right way, in words (PET) or in trained vectors."""

from nonet._lazy import lazy_names
from nonet.registry import Method, Part

METHOD = Method(
    name="prompt",
    title="Prompt learning",
    slots=("adapter",),
    papers=("2001.07676", "2104.08691", "2101.00190", "2103.10385", "2110.07602", "2102.09690"),
    idea="a model is asked in the right way, in words or in trained vectors",
    use="sort mail by topic from ten labelled examples",
    parts=(
        Part(
            slot="adapter",
            name="prompt",
            target="nonet.prompt.soft:add_prompt",
            config="nonet.prompt.config:PromptTuning",
            title="Prompt tuning",
        ),
        Part(
            slot="adapter",
            name="prefix",
            target="nonet.prompt.soft:add_prompt",
            config="nonet.prompt.config:PrefixTuning",
            title="Prefix tuning",
        ),
        Part(
            slot="adapter",
            name="ptuning",
            target="nonet.prompt.soft:add_prompt",
            config="nonet.prompt.config:PTuning",
            title="P-tuning",
        ),
        Part(slot="adapter", name="pet", target="nonet.prompt.pet:PET", title="PET", causal=False),
    ),
)

_HOMES = {
    "Ensemble": "nonet.prompt.ensemble",
    "PET": "nonet.prompt.pet",
    "PTuning": "nonet.prompt.config",
    "Pattern": "nonet.prompt.pattern",
    "PrefixTuning": "nonet.prompt.config",
    "PromptTuning": "nonet.prompt.config",
    "Verbalizer": "nonet.prompt.verbalizer",
    "add_prompt": "nonet.prompt.soft",
    "calibrate": "nonet.prompt.calibration",
    "distil": "nonet.prompt.classifier",
    "ipet": "nonet.prompt.generations",
    "next_training_set": "nonet.prompt.generations",
    "remove_prompt": "nonet.prompt.soft",
    "train_ensemble": "nonet.prompt.ensemble",
    "train_pet": "nonet.prompt.fitting",
}
__all__ = [*_HOMES, "METHOD"]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
