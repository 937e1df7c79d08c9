"""A tandem on disk: safetensors and JSON, and never the primary."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from nonet.files import read_json, read_tensors, reading, to_json
from nonet.tandem.config import TandemConfig
from nonet.tandem.router import Router
from nonet.weights import check_files, load_whole
from nonet.writing import write_folder

if TYPE_CHECKING:
    from nonet.tandem.layer import Tandem

FORMAT = "nonet.tandem 1"
PROJECTIONS = "projections.safetensors"
_KNOWN = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")  # of the primary


def save_tandem(tandem: Tandem, directory: Path) -> None:
    """Writes everything but the primary; ``config.json`` comes last, and says that the directory is whole."""
    router = tandem.router
    about = {
        "format": FORMAT,
        "options": asdict(tandem.options),
        "router": None if router is None else router.options,
        "primary": _description(tandem.primary),
    }

    def write(fresh: Path) -> None:
        tandem.secondary.save_pretrained(fresh / "secondary")
        save_file(_weights(tandem.projections), fresh / PROJECTIONS)
        if router is not None:
            save_file(_weights(router), fresh / "router.safetensors")
        (fresh / "config.json").write_text(to_json(about), encoding="utf-8")

    write_folder(directory, write, "config.json")


def load_tandem(
    directory: Path, primary: PreTrainedModel
) -> tuple[TandemConfig, PreTrainedModel, dict[str, Tensor], Router | None]:
    """Returns options, secondary, weights of the projections, and router of a directory.

    Raises:
        ValueError: it holds no tandem, one of another primary, or a file that cannot be read.
    """
    path = directory / "config.json"
    about = read_json(path) if path.exists() else {}
    if about.get("format") != FORMAT:
        raise ValueError(f"{directory} holds no tandem; give a directory that save_pretrained wrote")
    if about.get("primary") != _description(primary):
        raise ValueError(
            f"the tandem in {directory} was trained with another primary, {about.get('primary')}; "
            f"got {_description(primary)}"
        )
    with reading(path):
        options = TandemConfig(**about["options"])
        router = None if about["router"] is None else Router(**about["router"]).to(primary.device)
    check_files(directory / "secondary")
    with reading(directory / "secondary"):
        secondary = load_whole(directory / "secondary", dtype="auto", local_files_only=True)
    if router is not None:
        with reading(directory / "router.safetensors"):
            router.load_state_dict(read_tensors(directory / "router.safetensors"))
    return options, secondary.to(primary.device), read_tensors(directory / PROJECTIONS), router


def drop_what_is_not_trained(tandem: Tandem) -> None:
    """Leaves the primary, and second names of tied weights, out of the state dict.

    A checkpoint of Transformers' Trainer then holds what was trained, and nothing twice.
    """
    tandem.register_state_dict_post_hook(_saving)
    tandem.register_load_state_dict_post_hook(_loading)


# Hooks of a module are pickled with it, by name.
def _saving(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in _left_out(module):
        state.pop(prefix + name, None)


def _loading(module: nn.Module, keys: Any) -> None:
    left_out = tuple(_left_out(module))
    keys.missing_keys[:] = [name for name in keys.missing_keys if not name.endswith(left_out)]


def _left_out(tandem: nn.Module) -> set[str]:
    every = {name for name, _ in tandem.named_parameters(remove_duplicate=False)}
    every |= {name for name, _ in tandem.named_buffers(remove_duplicate=False)}
    first = {name for name, _ in tandem.named_parameters()} | {name for name, _ in tandem.named_buffers()}
    return (every - first) | {name for name in every if name.startswith("primary.")}


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().contiguous() for name, t in module.state_dict().items()}


def _description(primary: PreTrainedModel) -> dict[str, Any]:
    return {name: getattr(primary.config, name) for name in _KNOWN}
