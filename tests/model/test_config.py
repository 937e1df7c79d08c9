"""What a configuration refuses when it is made, in place of failing later or doing something else."""

import pytest

from nonet.model import NonetConfig, NonetForCausalLM, preset
from nonet.position.scaling import Linear


@pytest.mark.parametrize(("layers", "pattern"), [(2, "MMF"), (4, "MMF"), (1, "MF"), (6, "MMFM")])
def test_a_pattern_is_repeated_whole(layers, pattern):
    whole = {2: 3, 4: 6, 1: 2, 6: 8}[layers]
    said = f"which do not divide num_hidden_layers={layers}; give num_hidden_layers={whole}, or a pattern"
    with pytest.raises(ValueError, match=f"pattern='{pattern}' has {len(pattern)} letters, {said}"):
        NonetConfig(num_hidden_layers=layers, pattern=pattern)
    mixers = NonetConfig(num_hidden_layers=whole, pattern=pattern).mixers()
    assert "".join(mixer.letter for mixer in mixers) == pattern * (whole // len(pattern))


@pytest.mark.parametrize(
    ("size", "pattern", "layers"),
    [("tiny", "F", 2), ("tiny", "MMF", 3), ("small", "MMF", 6), ("small", "MMFM", 8)],
)
def test_a_size_has_the_layers_that_repeat_a_pattern_whole(size, pattern, layers):
    assert preset(size, pattern=pattern).num_hidden_layers == layers
    with pytest.raises(ValueError, match="do not divide num_hidden_layers=5"):
        preset(size, pattern="MF", num_hidden_layers=5)


@pytest.mark.parametrize(
    ("pattern", "position", "idle"),
    [
        ("M", "rope", True),
        ("MG", "alibi", True),
        ("MF", "rope", False),
        ("R", "alibi", False),
        ("L", "rope", False),
        ("M", "none", False),
        ("M", "learned", False),
        ("G", "sinusoidal", False),
        ("M", "axial", False),
    ],
)
def test_a_position_that_no_mixer_reads_is_known(pattern, position, idle):
    config = NonetConfig(num_hidden_layers=len(pattern), pattern=pattern, position=position)
    assert config.idle_position is idle


def test_options_that_cannot_be_saved_are_refused_when_given(tmp_path):
    for scaling in (Linear(2.0), {"kind": "linear", "factor": float("nan")}):
        with pytest.raises(ValueError, match=r"options of rope cannot be saved as JSON .*\.asdict"):
            NonetConfig(options={"rope": {"scaling": scaling}})
    options = {"rope": {"scaling": {"kind": "linear", "factor": 2.0}}}
    NonetForCausalLM(NonetConfig(hidden_size=32, num_hidden_layers=1, options=options)).save_pretrained(
        tmp_path
    )
    assert NonetForCausalLM.from_pretrained(tmp_path).config.options == options
