"""The Mamba block, on its own and as a mixer of the model."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from nonet.mamba.api import causal_conv1d, mamba_step, selective_scan
from nonet.mamba.config import MambaConfig
from nonet.shapes import check_positive
from nonet.slots import Context, Dims, LinearFactory, Mixer

# Few rows spend a step on waiting for the weights, so that one call which reads them once is best. With more
# rows than this the projections are worth a library's matrix products.
STEP_ROWS = 8


class MambaState(NamedTuple):
    """What a block remembers of the tokens that it has seen; its size does not grow with them."""

    conv: Tensor  # (B, C, W - 1): the last inputs of the convolution, oldest first
    ssm: Tensor  # (B, C, N)


class Mamba(nn.Module):
    r"""A selective state space between two projections: ``(B, T, E) -> (B, T, E)``, causal.

    .. math::
        [x, z] = W_{in} s, \quad u = \mathrm{SiLU}(\mathrm{conv}(x)), \quad
        [r, B, C] = W_x u, \quad \Delta = \mathrm{softplus}(W_{dt} r + b_{dt}), \\
        \mathrm{out} = W_{out}\, \mathrm{scan}(u, \Delta, -e^{A_{log}}, B, C, D, z)

    Args:
        E: width of the model.
        N: numbers that each channel remembers.
        conv_width: taps of the convolution.
        expand: channels of the recurrence, as a multiple of E.
        dt_rank: rank of the step sizes; ``"auto"`` is ``ceil(E / 16)``.
        dt_min: smallest step size at the start of training.
        dt_max: largest step size at the start of training.
        dt_init_floor: no step size starts below this.
        layers: blocks whose outputs add up; each starts smaller by the square root of their number.
        linear: makes the projections, called as ``linear(in, out, bias=False)``.
        impl: the implementation of both operations, or ``"auto"``.

    Raises:
        ValueError: an option is out of its range.

    Cost: about ``6 expand E^2`` operations a token for projections and ``6 expand E N`` for the
    recurrence; the state holds ``expand E (N + conv_width - 1)`` numbers. Source: Gu and Dao 2023
    (2312.00752), section 3.4 and algorithm 2; first values as in the authors' code.
    """

    def __init__(
        self,
        E: int,
        N: int = 16,
        *,
        conv_width: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        layers: int = 1,
        linear: LinearFactory = nn.Linear,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_positive(E=E, layers=layers)
        self.options = MambaConfig(N, conv_width, expand, dt_rank, dt_min, dt_max, dt_init_floor, impl)
        self.layers = layers
        channels, rank = expand * E, self.options.rank(E)
        self.widths = (rank, N, N)
        self.in_proj = linear(E, 2 * channels, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(channels, conv_width))
        self.conv_bias = nn.Parameter(torch.empty(channels))
        self.x_proj = linear(channels, rank + 2 * N, bias=False)
        self.dt_proj = linear(rank, channels, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(channels))
        self.A_log = nn.Parameter(torch.empty(channels, N))
        self.D = nn.Parameter(torch.empty(channels))
        self.out_proj = linear(channels, E, bias=False)
        self.init_weights()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Spares the rates and the skip from weight decay, also where a loader puts new ones in place."""
        super().register_parameter(name, param)
        if name in ("A_log", "D"):
            param._no_weight_decay = True  # type: ignore[union-attr]

    def init_weights(self, std: float | None = None) -> None:
        """Gives the weights their first values, except the two projections of the input.

        These keep what their factory or the model gave them; ``std``, the model's, has no other part.
        """
        from transformers import initialization

        o = self.options
        for weight, fan in (
            (self.conv_weight, o.conv_width),
            (self.conv_bias, o.conv_width),
            (self.dt_proj.weight, self.widths[0]),
            (self.out_proj.weight, len(self.D) * self.layers),
        ):
            nn.init.uniform_(weight, -(fan**-0.5), fan**-0.5)  # type: ignore[arg-type]
        # S4D-Real: the states of a channel forget at the rates 1, 2, ..., N.
        rates = torch.arange(1, o.state_size + 1, dtype=torch.float32, device=self.A_log.device)
        initialization.copy_(self.A_log, rates.log().expand_as(self.A_log))
        nn.init.ones_(self.D)
        # Step sizes are spread evenly on a logarithmic scale; their bias is softplus^-1(dt).
        log_dt = torch.empty_like(self.dt_bias, dtype=torch.float32)
        dt = log_dt.uniform_(math.log(o.dt_min), math.log(o.dt_max)).exp().clamp(min=o.dt_init_floor)
        initialization.copy_(self.dt_bias, dt + torch.log(-torch.expm1(-dt)))

    def forward(
        self,
        x: Tensor,
        initial_state: MambaState | None = None,
        return_last_state: bool = False,
        real: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Any:
        """Mixes T tokens, continuing from a state if one is given.

        Args:
            x: ``(B, T, E)``.
            initial_state: what an earlier call returned.
            return_last_state: also return the state behind the last real token of each row.
            real: ``(B, T)``, false on padding to the left or right; padding leaves the state as it is.
            cu_seqlens: n sequences in one row, as in :func:`nonet.mamba.selective_scan`; B is then 1, and
                states have n in its place. Not together with ``real``.

        Returns:
            ``(B, T, E)``, and a :class:`MambaState` when asked. Outputs on padding mean nothing.

        Raises:
            ValueError: both ``real`` and ``cu_seqlens`` are given.
        """
        if real is not None and cu_seqlens is not None:
            raise ValueError("real and cu_seqlens cannot both be given: packed sequences have no padding")
        if initial_state is not None and real is None and cu_seqlens is None and self._fits_one_call(x):
            out, last = self._one_call(x, initial_state)
            return (out, last) if return_last_state else out
        impl = self.options.impl
        before, h = initial_state or (None, None)
        inputs, z = self.in_proj(x).mT.chunk(2, dim=1)
        if real is not None:
            inputs = inputs.masked_fill(~real[:, None], 0.0)
        u, conv = causal_conv1d(
            inputs,
            self.conv_weight,
            self.conv_bias,
            "silu",
            before,
            return_last_state=True,
            cu_seqlens=cu_seqlens,
            impl=impl,
        )
        r, B, C = self.x_proj(u.mT).mT.split(self.widths, dim=1)
        delta = self.dt_proj(r.mT).mT
        if real is not None:
            delta = delta.masked_fill(~real[:, None], -torch.inf)  # softplus makes it a step of zero
            conv = _last_real(inputs, before, conv.shape[2], real)
        y, h = selective_scan(
            u,
            delta,
            -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32))),
            B,
            C,
            self.D,
            z,
            self.dt_bias,
            delta_softplus=True,
            initial_state=h,
            return_last_state=True,
            cu_seqlens=cu_seqlens,
            impl=impl,
        )
        out = self.out_proj(y.mT)
        return (out, MambaState(conv, h)) if return_last_state else out

    def _projections(self) -> list[nn.Linear]:
        return cast(list[nn.Linear], [self.in_proj, self.x_proj, self.dt_proj, self.out_proj])

    def _fits_one_call(self, x: Tensor) -> bool:
        """Says whether :func:`mamba_step` computes what the modules would, were they called one by one."""
        return (
            x.shape[1] == 1
            and x.shape[0] <= STEP_ROWS
            and x.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and all(map(is_bare, self._projections()))
            and self.x_proj.bias is self.dt_proj.bias is None
        )

    def _one_call(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        in_proj, x_proj, dt_proj, out_proj = self._projections()
        out, conv, ssm = mamba_step(
            x[:, 0],
            *state,
            in_proj.weight,
            self.conv_weight,
            self.conv_bias,
            x_proj.weight,
            dt_proj.weight,
            self.dt_bias,
            self.A_log,
            self.D,
            out_proj.weight,
            in_bias=in_proj.bias,
            out_bias=out_proj.bias,
            impl=self.options.impl,
        )
        return out[:, None], MambaState(conv, ssm)

    def step(self, x: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Mixes one token ``(B, E)`` into the state, at a cost that does not grow with the context."""
        out, state = self(x[:, None], state, return_last_state=True)
        return out[:, 0], state


class MambaMixer(Mixer):
    """:class:`Mamba` as a mixer of the model, with its state in the cache.

    Args:
        dims: the model around it.
        options: :class:`MambaConfig`.
        layer: index of the layer.
        linear: makes the projections.
    """

    def __init__(self, dims: Dims, options: MambaConfig, layer: int, linear: LinearFactory) -> None:
        super().__init__(dims, options, layer, linear)
        block = asdict(options)
        N = block.pop("state_size")
        self.mamba = Mamba(dims.hidden, N, **block, layers=dims.layers, linear=linear)

    def forward(self, x: Tensor, context: Context, state: Any | None = None) -> Tensor:
        """Mixes T new tokens into the state, if there is one."""
        if state is None:
            return self.mamba(x, real=context.real())
        conv, ssm = state.get("conv"), state.get("ssm")
        before = None if conv is None or ssm is None else MambaState(conv, ssm)
        out, last = self.mamba(x, before, return_last_state=True, real=context.real())
        state.put("conv", last.conv)
        state.put("ssm", last.ssm)
        return out


def is_bare(module: nn.Module) -> bool:
    """Says whether calling a linear layer is the product with its weight and nothing else."""
    return (
        type(module) is nn.Linear
        and type(module.weight) in (nn.Parameter, Tensor)  # others, such as quantised ones, know how
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and "forward" not in vars(module)
    )


def _last_real(inputs: Tensor, before: Tensor | None, count: int, real: Tensor) -> Tensor:
    """Returns the ``count`` inputs up to the last real one of each row."""
    before = inputs.new_zeros(*inputs.shape[:2], count) if before is None else before
    seen = torch.cat([before, inputs], dim=-1)
    ends = (real * torch.arange(1, real.shape[1] + 1, device=real.device)).amax(1)
    places = ends[:, None] + torch.arange(count, device=real.device)
    return seen.gather(2, places[:, None].expand(-1, inputs.shape[1], -1))
