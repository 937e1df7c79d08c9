"""The kernels of the C library: each fills the tensors that it is given first."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

from nonet.native import HGRN, library, parts, storage

Some: TypeAlias = Tensor | None


def hgrn_scan(
    outs: tuple[Tensor, ...],
    i: Tensor,
    f: Tensor,
    lower_bound: Some,
    initial: Some,
    starts: Some,
    logits: bool,
) -> None:
    """Fills the states and the last state."""
    h, last = outs
    rows, channels = last.shape
    args = HGRN.pack(
        dtype=storage(i),
        rows=rows,
        channels=channels,
        length=i.shape[2],
        logits=logits,
        parts=parts(rows, channels),
        starts=starts,
        i=i,
        f=f,
        h=h,
        lower_bound=lower_bound,
        initial=initial,
        last=last,
    )
    library().call("hgrn_scan", args)


def hgrn_scan_backward(
    outs: tuple[Tensor, ...],
    dh: Tensor,
    dlast: Tensor,
    h: Tensor,
    i: Tensor,
    f: Tensor,
    lower_bound: Some,
    initial: Some,
    starts: Some,
    logits: bool,
) -> None:
    """Fills the gradients; those of the lower bound one a row."""
    di, df, dbound, dinitial = outs
    rows, channels = dlast.shape
    args = HGRN.pack(
        dtype=storage(i),
        rows=rows,
        channels=channels,
        length=i.shape[2],
        logits=logits,
        parts=parts(rows, channels),
        starts=starts,
        i=i,
        f=f,
        h=h,
        lower_bound=lower_bound,
        initial=initial,
        dh=dh,
        di=di,
        df=df,
        dlast=dlast,
        dinitial=dinitial,
        dlower_bound=dbound,
    )
    library().call("hgrn_scan_backward", args)
