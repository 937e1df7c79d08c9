"""Transformers' Mamba and FalconMamba layers, computed by nonet's operations.

These classes add nothing to an instance, so a layer becomes one, or becomes itself again, by its
``__class__``. They keep the name of the class that they replace, since device maps and FSDP know layers by
that name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad
from transformers.cache_utils import Cache
from transformers.models.falcon_mamba import modeling_falcon_mamba
from transformers.models.mamba import modeling_mamba

from nonet.ecosystem import given_cache, refuse_unknown
from nonet.mamba import causal_conv1d, mamba_step, selective_scan
from nonet.mamba.layer import STEP_ROWS, is_bare

_SILU = ("silu", "swish")


class _Scanned:
    """The forward pass of both layers; they differ by three norms without weights."""

    nonet_impl = "auto"

    # The weights of these two are read here and not called, so that hooks which bring them must be fired.
    @modeling_mamba.force_accelerate_hooks(["conv1d", "dt_proj"])  # type: ignore[untyped-decorator]
    def forward(
        self: Any,
        hidden_states: Tensor,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        cache_params: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Mixes T tokens, continuing from the cache's states if there are some.

        Args:
            hidden_states: ``(B, T, E)``.
            cache: gives the states before the first token and takes those after the last.
            attention_mask: ``(B, S)``, zero on padding; its last T columns are these tokens. Padding may lie
                anywhere: it leaves states as they are, and its outputs mean nothing.
            cache_params: ``cache``, by the name that Transformers gave it before 5.24.
            kwargs: only None; no other argument of Transformers is served.

        Returns:
            ``(B, T, E)``.

        Raises:
            TypeError: an argument is not served, such as those of packed rows (cu_seqlens, seq_idx).
            ValueError: the mask does not fit, or padding meets a cache that records.
        """
        refuse_unknown(type(self).__name__, kwargs)
        cache = given_cache({"cache": cache, "cache_params": cache_params})
        conv, ssm = None, None
        if cache is not None:
            conv = cache.get_conv_state(self.layer_idx)
            ssm = cache.get_recurrent_state(self.layer_idx)
        real = _real(attention_mask, hidden_states)
        if real is None:
            if conv is not None and ssm is not None and _steps(self, hidden_states, cache):
                return _step(self, hidden_states, conv, ssm)
            return _scan(self, hidden_states, cache, conv, ssm, None)
        # Real tokens first: they continue from the state, and nothing reads the padding after them.
        order = real.argsort(dim=1, descending=True, stable=True)[..., None]
        hidden_states = hidden_states.masked_fill(~real[..., None], 0.0).take_along_dim(order, dim=1)
        real = real[..., None].take_along_dim(order, dim=1)
        out = _scan(self, hidden_states, cache, conv, ssm, real)
        return out.take_along_dim(order.argsort(dim=1), dim=1)


class MambaMixer(_Scanned, modeling_mamba.MambaMixer):
    """Transformers' layer of this name with :class:`_Scanned`'s forward pass."""


class FalconMambaMixer(_Scanned, modeling_falcon_mamba.FalconMambaMixer):
    """Transformers' layer of this name with :class:`_Scanned`'s forward pass."""


def _scan(
    mixer: Any, x: Tensor, cache: Cache | None, conv: Tensor | None, ssm: Tensor | None, real: Tensor | None
) -> Tensor:
    """Mixes any number of tokens; ``real`` (B, T, 1) is true on a first part of each row."""
    width, impl = mixer.conv_kernel_size, mixer.nonet_impl
    inputs, z = mixer.in_proj(x).mT.chunk(2, dim=1)
    silu = mixer.activation in _SILU
    u = causal_conv1d(
        inputs,
        mixer.conv1d.weight.squeeze(1),
        mixer.conv1d.bias,
        "silu" if silu else None,
        None if conv is None else _last(conv, width - 1).to(inputs.dtype),
        impl=impl,
    )
    if not silu:
        u = mixer.act(u)
    widths = (mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size)
    r, B, C = mixer.x_proj(u.mT).split(widths, dim=-1)
    if hasattr(mixer, "dt_layernorm"):
        r, B, C = mixer.dt_layernorm(r), mixer.b_layernorm(B), mixer.c_layernorm(C)
    delta = linear(r, mixer.dt_proj.weight)
    if real is not None:
        delta = delta.masked_fill(~real, -torch.inf)  # softplus makes it a step of zero
    if ssm is not None and torch.is_grad_enabled():
        ssm = ssm.clone()  # the backward pass needs it, and the cache overwrites it
    y, last = selective_scan(
        u,
        delta.mT,
        -torch.exp(mixer.A_log.to(torch.promote_types(mixer.A_log.dtype, torch.float32))),
        B.mT,
        C.mT,
        mixer.D,
        z,
        mixer.dt_proj.bias,
        delta_softplus=True,
        initial_state=ssm,
        return_last_state=True,
        impl=impl,
    )
    if cache is not None:
        _keep(cache, mixer.layer_idx, width, inputs, last, conv, real)
    return mixer.out_proj(y.mT)


def _keep(
    cache: Cache,
    layer: int,
    width: int,
    inputs: Tensor,
    ssm: Tensor,
    conv: Tensor | None,
    real: Tensor | None,
) -> None:
    """Hands the states behind the last real token to the cache."""
    if cache.is_recording_past(layer):
        if real is not None:
            raise ValueError("a cache that records its past takes no padding; leave out attention_mask")
        recent = inputs  # all of them, since some may be taken back
    elif real is None:
        recent = inputs[..., -width:]
    else:
        before = inputs.new_zeros(*inputs.shape[:2], width) if conv is None else _last(conv, width)
        places = real.sum(1) + torch.arange(width, device=inputs.device)
        recent = torch.cat([before, inputs], dim=-1).take_along_dim(places[:, None], dim=-1)
    cache.update_conv_state(recent, layer, conv_kernel_size=width)
    cache.update_recurrent_state(ssm, layer)


def _step(mixer: Any, x: Tensor, conv: Tensor, ssm: Tensor) -> Tensor:
    """Mixes one token into the cache's states, which are written to as Transformers' own step does."""
    out, *states = mamba_step(
        x[:, 0],
        conv,
        ssm,
        mixer.in_proj.weight,
        mixer.conv1d.weight.squeeze(1),
        mixer.conv1d.bias,
        mixer.x_proj.weight,
        mixer.dt_proj.weight,
        mixer.dt_proj.bias,
        mixer.A_log,
        mixer.D,
        mixer.out_proj.weight,
        in_bias=mixer.in_proj.bias,
        out_bias=mixer.out_proj.bias,
        norm_eps=getattr(mixer, "rms_eps", None),
        impl=mixer.nonet_impl,
    )
    conv.copy_(states[0])
    ssm.copy_(states[1])
    return out[:, None]


def _steps(mixer: Any, x: Tensor, cache: Cache) -> bool:
    """Returns whether :func:`_step` does all that the layer's modules would do."""
    return (
        x.shape[1] == 1
        and x.shape[0] <= STEP_ROWS
        and mixer.activation in _SILU
        and not cache.is_recording_past(mixer.layer_idx)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(x.device.type)
        and all(is_bare(m) for m in (mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj))
    )


def _real(attention_mask: Tensor | None, hidden_states: Tensor) -> Tensor | None:
    """Returns the (B, T) mask that is true on real tokens, or None where there is no padding."""
    if attention_mask is None:
        return None
    rows, length, _ = hidden_states.shape
    if attention_mask.dim() != 2 or attention_mask.shape[0] != rows or attention_mask.shape[1] < length:
        raise ValueError(
            f"attention_mask must be ({rows}, {length}) or have columns for earlier tokens in front; "
            f"got {tuple(attention_mask.shape)}"
        )
    real = attention_mask[:, attention_mask.shape[1] - length :].bool()
    # A compiler traces without values, and so without this shortcut.
    return None if not torch.compiler.is_compiling() and bool(real.all()) else real


def _last(conv: Tensor, count: int) -> Tensor:
    """Returns a copy of the last ``count`` inputs of the convolution, with zeros before the first."""
    return pad(conv, (count - conv.shape[-1], 0))
