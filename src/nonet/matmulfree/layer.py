"""The MatMul-free token mixer and channel mixer, alone and in the model."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nonet.matmulfree.api import hgrn_scan
from nonet.matmulfree.bitlinear import BitLinear
from nonet.matmulfree.config import Form, MLGRUConfig
from nonet.slots import Context, Dims, LinearFactory, Mixer


class MLGRU(nn.Module):
    r"""A gated recurrence without products of matrices and states: what a token takes in, it chooses alone.

    .. math::
        f_t &= \sigma(W_f x_t), \quad i_t = (1 - f_t) \, \mathrm{SiLU}(W_i x_t), \quad
        h_t = f_t h_{t-1} + i_t, \quad y_t = W_o o_t \\
        o_t &= \mathrm{RMSNorm}(W_g x_t) \, \mathrm{SiLU}(h_t) \;\text{(official)}, \quad
        o_t = \sigma(W_g x_t) \, h_t \;\text{(paper)}

    The paper's form has a bias in every projection. With a ``lower_bound`` l, f becomes ``l + (1 - l) f``.

    Args:
        E: width of the model.
        expand: channels of the state for each channel of the model, C / E.
        form: ``"official"`` follows the authors' code, ``"paper"`` the paper's equations.
        linear: makes the projections, called as ``linear(in, out, bias=...)``.
        eps: epsilon of the gate's norm.
        impl: the implementation of the scan, or ``"auto"``.

    Raises:
        ValueError: an option is not known.

    Cost: ``8 C E`` operations a token, additions where the projections are ternary; the state holds C
    numbers. Source: Zhu et al. 2024 (2406.02528), section 3.3.1.
    """

    def __init__(
        self,
        E: int,
        expand: int = 1,
        form: Form = "official",
        *,
        linear: LinearFactory = BitLinear,
        eps: float = 1e-6,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.options = MLGRUConfig(expand=expand, form=form, impl=impl)
        C, bias = expand * E, form == "paper"
        self.i_proj = linear(E, C, bias=bias)
        self.f_proj = linear(E, C, bias=bias)
        self.g_proj = linear(E, C, bias=bias)
        self.o_proj = linear(C, E, bias=bias)
        self.gate_norm = nn.RMSNorm(C, eps=eps) if form == "official" else None
        self.init_weights()

    def init_weights(self, std: float | None = None) -> None:
        """Draws the projections as the authors' code does, whatever ``std`` the model around has."""
        for projection in (self.i_proj, self.f_proj, self.g_proj, self.o_proj):
            nn.init.xavier_uniform_(projection.weight, gain=2**-2.5)  # type: ignore[arg-type]
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)  # type: ignore[arg-type]

    def forward(
        self,
        x: Tensor,
        initial_state: Tensor | None = None,
        return_last_state: bool = False,
        real: Tensor | None = None,
        lower_bound: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Any:
        """Mixes T tokens, continuing from a state if one is given.

        Args:
            x: ``(B, T, E)``.
            initial_state: what an earlier call returned, ``(n, C)`` in float32 or wider; n is B.
            return_last_state: also return the state after the last token.
            real: ``(B, T)``, false on padding, which leaves the state as it is.
            lower_bound: ``(C,)``, the least of its state that a channel keeps, from 0 to 1.
            cu_seqlens: n sequences in one row, as in :func:`nonet.matmulfree.hgrn_scan`; B is then 1.

        Returns:
            ``(B, T, E)``, and the state ``(n, C)`` when asked. Outputs on padding mean nothing.
        """
        logits = self.f_proj(x)
        if real is not None:
            logits = logits.masked_fill(~real[..., None], torch.inf)
        states, last = hgrn_scan(
            self.i_proj(x).mT,
            logits.mT,
            initial_state,
            return_last_state=True,
            from_logits=True,
            lower_bound=lower_bound,
            cu_seqlens=cu_seqlens,
            impl=self.options.impl,
        )
        h, gate = states.mT, self.g_proj(x)
        if self.gate_norm is None:
            o = torch.sigmoid(gate) * h
        else:  # under autocast the gate is narrower than the norm's weight
            o = self.gate_norm(gate.to(self.gate_norm.weight.dtype)) * F.silu(h)
        out = self.o_proj(o.to(x.dtype))
        return (out, last) if return_last_state else out

    def step(
        self, x: Tensor, state: Tensor | None = None, lower_bound: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mixes one token ``(B, E)`` into the state, at a cost that does not grow with the context."""
        out, state = self(x[:, None], state, return_last_state=True, lower_bound=lower_bound)
        return out[:, 0], state


class LowerBounds(nn.Module):
    """Learned bounds of forget gates, zero in the first layer and rising with depth.

    The bound of layer l is the sum of the layers 1 to l of a softmax over layers. Source: Qin et al. 2023
    (2311.04823).
    """

    def __init__(self, layers: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, channels))

    def init_weights(self, std: float) -> None:
        """Sets all layers alike, so that bounds rise evenly."""
        nn.init.zeros_(self.weight)

    def forward(self, layer: int) -> Float[Tensor, " C"]:
        """Returns the bounds of one layer, in float32 or wider."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        return weight.softmax(dim=0)[1 : layer + 1].sum(dim=0)


class MLGRUMixer(Mixer):
    """:class:`MLGRU` as a mixer of the model.

    Args:
        dims: the model around it.
        options: :class:`MLGRUConfig`.
        layer: index of the layer.
        linear: makes the projections.
    """

    def __init__(self, dims: Dims, options: MLGRUConfig, layer: int, linear: LinearFactory) -> None:
        super().__init__(dims, options, layer, linear)
        self.mlgru = MLGRU(
            dims.hidden, options.expand, options.form, linear=linear, eps=dims.eps, impl=options.impl
        )

    @classmethod
    def build_shared(cls, dims: Dims, options: MLGRUConfig, linear: LinearFactory) -> nn.Module | None:
        """Returns the lower bounds of all layers, or None without them."""
        return LowerBounds(dims.layers, options.expand * dims.hidden) if options.lower_bounds else None

    def forward(self, x: Tensor, context: Context, state: Any | None = None) -> Tensor:
        """Mixes T new tokens, continuing from the state of earlier ones."""
        before = None if state is None else state.get("h")
        bound = cast(Any, context.shared)["mlgru"](self.layer) if self.options.lower_bounds else None
        y, last = self.mlgru(x, before, return_last_state=True, real=context.real(), lower_bound=bound)
        if state is not None:
            state.put("h", last)
        return y


class GatedChannelMixer(nn.Module):
    r"""The channel mixer of MatMul-free models: ``down(SiLU(gate) * up)``, gate and up in one projection.

    Args:
        E: width of the model; the inner width is 8 E / 3, rounded up to a multiple of 256.
        linear: makes the projections.

    Cost: ``6 E d_ff`` operations a token. Source: Zhu et al. 2024 (2406.02528), section 3.3.2.
    """

    def __init__(self, E: int, linear: LinearFactory = BitLinear) -> None:
        super().__init__()
        inner = 256 * -(-int(E * 8 / 3) // 256)
        self.gate_proj = linear(E, 2 * inner, bias=False)
        self.down_proj = linear(inner, E, bias=False)

    def forward(self, x: Float[Tensor, "*batch E"]) -> Float[Tensor, "*batch E"]:
        """Returns each token's channels mixed."""
        gate, up = self.gate_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)
