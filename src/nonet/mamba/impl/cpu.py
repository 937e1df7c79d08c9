"""The kernels of the C library: each fills the tensors that it is given first."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from nonet.native import CONV, SCAN, STEP, library, parts, storage

Some: TypeAlias = Tensor | None


def selective_scan(
    outs: tuple[Tensor, ...],
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Some,
    z: Some,
    delta_bias: Some,
    initial: Some,
    starts: Some,
    softplus: bool,
    train: bool,
) -> None:
    """Fills the output, the last state, and the state before each chunk (of each row unless training)."""
    out, last, fronts = outs
    rows, channels, states = last.shape
    args = SCAN.pack(
        dtype=storage(u),
        rows=rows,
        channels=channels,
        states=states,
        length=u.shape[2],
        parts=parts(rows, channels),
        softplus=softplus,
        train=train,
        starts=starts,
        u=u,
        delta=delta,
        z=z,
        out=out,
        b=B,
        c=C,
        a=A,
        d=D,
        delta_bias=delta_bias,
        initial=initial,
        last=last,
        fronts=fronts,
    )
    library().call("selective_scan", args)


def selective_scan_backward(
    outs: tuple[Tensor, ...],
    dout: Tensor,
    dlast: Tensor,
    fronts: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Some,
    z: Some,
    delta_bias: Some,
    starts: Some,
    softplus: bool,
) -> None:
    """Fills the gradients; those of A, D and the bias one a row."""
    du, ddelta, dz, dB, dC, dA, dD, dbias, dinitial = outs
    rows, channels, states = dinitial.shape
    for gathered in (dA, dD, dbias):
        gathered.zero_()
    # Tasks that share the channels each have a sum of their own. How many depends on the number of threads,
    # which the shape of a result must not.
    shares = parts(rows, channels)
    dB_parts, dC_parts = dB.new_empty(shares, *dB.shape), dC.new_empty(shares, *dC.shape)
    args = SCAN.pack(
        dtype=storage(u),
        rows=rows,
        channels=channels,
        states=states,
        length=u.shape[2],
        parts=shares,
        softplus=softplus,
        train=True,
        starts=starts,
        u=u,
        delta=delta,
        z=z,
        b=B,
        c=C,
        a=A,
        d=D,
        delta_bias=delta_bias,
        fronts=fronts,
        dout=dout,
        du=du,
        ddelta=ddelta,
        dz=dz,
        dlast=dlast,
        dinitial=dinitial,
        db=dB_parts,
        dc=dC_parts,
        da=dA,
        dd=dD,
        dbias=dbias,
    )
    library().call("selective_scan_backward", args)
    torch.sum(dB_parts, 0, out=dB)
    torch.sum(dC_parts, 0, out=dC)


def causal_conv1d(
    outs: tuple[Tensor, ...], x: Tensor, weight: Tensor, bias: Some, initial: Some, starts: Some, silu: bool
) -> None:
    """Fills the output and the last inputs."""
    out, last = outs
    args = CONV.pack(
        dtype=storage(x),
        rows=len(last),
        channels=x.shape[1],
        width=weight.shape[1],
        length=x.shape[2],
        silu=silu,
        parts=parts(len(last), x.shape[1]),
        starts=starts,
        x=x,
        out=out,
        weight=weight,
        bias=bias,
        initial=initial,
        last=last,
    )
    library().call("causal_conv1d", args)


def causal_conv1d_backward(
    outs: tuple[Tensor, ...],
    dout: Tensor,
    dlast: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Some,
    initial: Some,
    starts: Some,
    silu: bool,
) -> None:
    """Fills the gradients; those of the weight and of the bias one a row."""
    dx, dweight, dbias, dinitial = outs
    args = CONV.pack(
        dtype=storage(x),
        rows=len(dinitial),
        channels=x.shape[1],
        width=weight.shape[1],
        length=x.shape[2],
        silu=silu,
        parts=parts(len(dinitial), x.shape[1]),
        starts=starts,
        x=x,
        weight=weight,
        bias=bias,
        initial=initial,
        dout=dout,
        dx=dx,
        dlast=dlast,
        dinitial=dinitial,
        dweight=dweight,
        dbias=dbias,
    )
    library().call("causal_conv1d_backward", args)


def mamba_step(
    outs: tuple[Tensor, ...],
    x: Tensor,
    conv: Tensor,
    ssm: Tensor,
    in_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Some,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Some,
    A_log: Tensor,
    D: Tensor,
    out_proj: Tensor,
    in_bias: Some,
    out_bias: Some,
    norm_eps: float | None,
) -> None:
    """Fills the output and the two new states."""
    out, new_conv, new_ssm = outs
    rows, width = x.shape
    channels, states = A_log.shape
    rank = dt_proj.shape[1]
    work = ssm.new_empty(rows * (3 * channels + rank + 2 * states + width))
    args = STEP.pack(
        dtype=storage(x),
        wide=conv_weight.dtype != x.dtype,
        rows=rows,
        width=width,
        channels=channels,
        states=states,
        rank=rank,
        taps=conv_weight.shape[1],
        memory=conv.shape[2],
        norm_eps=-1.0 if norm_eps is None else norm_eps,
        x=x,
        out=out,
        conv=conv,
        new_conv=new_conv,
        ssm=ssm,
        new_ssm=new_ssm,
        in_proj=in_proj,
        in_bias=in_bias,
        conv_weight=conv_weight,
        conv_bias=conv_bias,
        x_proj=x_proj,
        dt_proj=dt_proj,
        dt_bias=dt_bias,
        a_log=A_log,
        d=D,
        out_proj=out_proj,
        out_bias=out_bias,
        work=work,
    )
    library().call("mamba_step", args)
