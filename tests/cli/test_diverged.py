"""A training that diverges stops at once, keeps its last checkpoint, and writes no number that is none."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nonet.files import to_json
from nonet.training import fit, make_trainer
from nonet.training.checkpoint import read_about, save_checkpoint
from nonet.training.diverged import DivergedError


class Line(nn.Module):
    """One weight, whose gradient is as large as it is told to be."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, scale):
        loss = self.weight * 1.0
        loss.register_hook(lambda gradient: gradient * scale.sum())
        return {"loss": loss}


def trainer(model, scales):
    items = [{"scale": torch.tensor(scale)} for scale in scales]
    sizes = {"learning_rate": 0.1, "batch": 1, "steps": len(items), "seed": 0, "device": "cpu"}
    return make_trainer(model, items, callbacks=[], first_step=0, **sizes)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(bad):
    good, both = Line(), Line()
    trainer(good, [1.0]).train()
    with pytest.raises(DivergedError, match=r"the gradient is (inf|nan) at step 2, with .* 0\.1"):
        trainer(both, [1.0, bad]).train()
    assert math.isfinite(both.weight.item())
    assert both.weight.item() < 1
    with torch.no_grad():
        both.weight.fill_(bad)
    with pytest.raises(DivergedError, match="the loss is"):
        trainer(both, [1.0]).train()


def test_a_checkpoint_never_holds_a_weight_that_is_not_finite(tmp_path):
    model = Line()
    optimizer = torch.optim.AdamW(model.parameters())
    about = {"recipe": {}, "rests_on": {}, "seconds": 0.0}
    save_checkpoint(tmp_path, model, optimizer, {**about, "step": 1})
    with torch.no_grad():
        model.weight.fill_(math.nan)
    with pytest.raises(DivergedError, match="a weight is not finite after step 2"):
        save_checkpoint(tmp_path, model, optimizer, {**about, "step": 2})
    assert read_about(tmp_path)["step"] == 1
    assert load_file(tmp_path / "checkpoint.safetensors")["model.weight"].item() == 1


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i}: the quick brown fox\n" for i in range(200)))
    return path


COMMANDS = {
    "train": ["train", "TEXT"],
    "finetune": ["finetune", "MODEL", "TEXT", "--method", "full"],
    "tandem": ["tandem", "train", "MODEL", "TEXT", "--layers", "1"],
}


def words(command, model, text, out, rate):
    names = {"MODEL": str(model), "TEXT": str(text)}
    sizes = ["--steps", "8", "--window", "32", "--batch", "2", "--json"]
    return [*(names.get(word, word) for word in command), "--out", out, "--learning-rate", rate, *sizes]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_stops_and_says_what_to_try(command, model, text, tmp_path, invoke, monkeypatch):
    monkeypatch.setattr(fit, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    out = tmp_path / "out"
    done = invoke(*words(command, model, text, out, "1e18"))
    assert done.exit_code == 1
    assert done.stdout == ""
    assert isinstance(done.exception, DivergedError)
    said = str(done.exception)
    assert "training diverged: " in said
    assert f"stays in {out}" in said
    assert "a lower --learning-rate, such as 1e+17" in said
    assert [f.name for f in out.iterdir()] == ["checkpoint.safetensors"]
    kept = load_file(out / "checkpoint.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in kept.values())


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("rate", ["inf", "nan", "0", "-1"])
def test_a_learning_rate_without_meaning_is_refused(command, rate, model, text, tmp_path, refused):
    code, said = refused(*words(command, model, text, tmp_path / "out", rate))
    assert code == 1
    assert "learning_rate must be above zero" in said
    assert not (tmp_path / "out").exists()


def test_a_model_that_holds_nan_is_not_trained(model, text, tmp_path, invoke):
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], math.nan)
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    done = invoke(*words(COMMANDS["finetune"], tmp_path, text, tmp_path / "out", "1e-3"))
    assert done.exit_code == 1
    assert "bits per byte is nan before training" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_json_holds_no_number_that_is_none():
    assert json.loads(to_json({"a": 1.5})) == {"a": 1.5}
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            to_json({"a": [number]})
