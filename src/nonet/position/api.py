r"""Positions as functions: slopes and bias of ALiBi, frequencies, angles and rotation of RoPE, sinusoids."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nonet.position import METHOD
from nonet.position.config import RotaryConfig
from nonet.select import implementation
from nonet.shapes import Tensors, check_flag, check_number, check_whole

_PLAIN = RotaryConfig()
_BIAS = Tensors(slopes="H")
_ANGLES = Tensors(inv_freq="half", places="B T: whole")
_ROTARY = Tensors(x="B H T D: float", cos="Bc T half", sin="Bs T half")
_PLACES = Tensors(places="B T: whole")


def alibi_slopes(
    n_heads: int, *, length: int | None = None, train_length: int | None = None
) -> Float[Tensor, " H"]:
    r"""Returns ALiBi's slopes: how much each head's scores fall for every token of distance.

    .. math:: m_h = 2^{-8h/H}, \quad h = 1 \dots H

    when H is a power of two. Else the slopes of the power of two c below it come first, and then every
    second slope of 2c heads. With lengths, and a context longer than in training, slopes are multiplied by
    ``train_length / length``.

    Args:
        n_heads: H.
        length: tokens in the context.
        train_length: tokens in the contexts of training; given together with ``length``.

    Returns:
        ``(H,)`` in float32. They belong outside the factor ``D ** -0.5`` on scores.

    Raises:
        ValueError: a number is no whole one above zero, or one length is given without the other.

    Source: Press et al. 2021 (2108.12409), section 3, and its code for other numbers of heads; with lengths
    Al-Khateeb et al. 2023 (2310.13017).
    """
    check_whole(n_heads=n_heads)
    if (length is None) != (train_length is None):
        raise ValueError(f"length and train_length must be given together; got {length} and {train_length}")
    if length is not None and train_length is not None:
        check_whole(length=length, train_length=train_length)
    below = 1 << (n_heads.bit_length() - 1)  # the power of two at or below n_heads
    slopes = torch.tensor(_geometric(below) + _geometric(2 * below)[::2][: n_heads - below])
    if length is None or train_length is None or length <= train_length:
        return slopes
    return slopes * (train_length / length)


def _check_device(device: torch.device | str | None) -> None:
    if not isinstance(device, torch.device | str | None):
        raise TypeError(f"device must be a torch.device, its name or None; got {type(device).__name__}")
    if isinstance(device, str):
        try:
            torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device={device!r} is not known: {error}") from error


def _geometric(n: int) -> list[float]:
    return [2.0 ** (-8 * h / n) for h in range(1, n + 1)]


def alibi_bias(slopes: Float[Tensor, " H"], queries: int, keys: int) -> Float[Tensor, "H T S"]:
    r"""Returns the bias that attention adds to its scores, for every query and key.

    .. math:: b_{hij} = -m_h |i - j|

    Args:
        slopes: ``(H,)``.
        queries: T; the last of them stands at the last key (bottom right).
        keys: S.

    Returns:
        ``(H, T, S)`` in the dtype of ``slopes``, symmetric: where attention is causal the upper triangle
        is never read.

    Raises:
        TypeError: ``slopes`` is no tensor.
        ValueError: the shape or dtype of ``slopes`` or a length is wrong.

    Complexity: ``H T S`` numbers. Source: Press et al. 2021 (2108.12409), section 3.
    """
    _BIAS.check(slopes)
    check_whole(queries=queries, keys=keys)
    i = torch.arange(keys - queries, keys, device=slopes.device)[:, None]
    j = torch.arange(keys, device=slopes.device)
    return -slopes[:, None, None] * (i - j).abs()


def rotary_frequencies(
    head_dim: int,
    options: RotaryConfig = _PLAIN,
    *,
    length: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> tuple[Float[Tensor, " half"], float]:
    r"""Returns the angles by which the pairs of dims turn from one token to the next.

    .. math:: \theta_j = b^{-2j/d}, \quad j = 0 \dots d/2 - 1

    Args:
        head_dim: D; ``d = int(D * options.partial)`` of its dims turn.
        options: base, fraction and scaling.
        length: tokens in the whole context; read by scalings that depend on it, which take None for the
            original length.
        dtype: float32, or float64 for a model in float64; no less, or far places would blur.
        device: where they are needed.

    Returns:
        ``(d / 2,)`` radians a token, and the factor on cos and sin, 1 without a scaling.

    Raises:
        TypeError: ``options`` is no :class:`RotaryConfig`, or ``device`` no device.
        ValueError: a number or the dtype is wrong, no even number of dims would turn, or the scaling does
            not fit them.

    Source: Su et al. 2021 (2104.09864), section 3.2.2; :mod:`nonet.position.scaling` names each scaling's.
    """
    check_whole(head_dim=head_dim, length=1 if length is None else length)
    if not isinstance(options, RotaryConfig):
        raise TypeError(f"options must be a RotaryConfig; got {type(options).__name__}")
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64; got {dtype!r}")
    _check_device(device)
    width = int(head_dim * options.partial)
    if width < 2 or width % 2:
        raise ValueError(
            f"head_dim must leave an even number of dims to turn; got {width}, from head_dim={head_dim} and "
            f"partial={options.partial}"
        )
    exponents = torch.arange(0, width, 2, dtype=dtype, device=device) / width
    if options.scaling is None:
        return 1.0 / options.base**exponents, 1.0
    return options.scaling(options.base, exponents, length)


def rotary_angles(
    inv_freq: Float[Tensor, " half"], places: Int[Tensor, "B T"], attention_factor: float = 1.0
) -> tuple[Float[Tensor, "B T half"], Float[Tensor, "B T half"]]:
    r"""Returns the cosines and sines of the angles at some places.

    .. math:: c \cos(m \theta_j), \quad c \sin(m \theta_j)

    Args:
        inv_freq: frequencies ``(half,)``.
        places: m, whole numbers ``(B or 1, T)``.
        attention_factor: c; scores grow by its square.

    Returns:
        Two of ``(B or 1, T, half)``, in the dtype of ``inv_freq``. Each angle is there once; Transformers
        hands its functions every angle twice, side by side.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape or device is wrong, or places are not whole numbers: bfloat16 knows no odd one
            above 256.

    Source: Su et al. 2021 (2104.09864), equation 34.
    """
    _ANGLES.check(inv_freq, places)
    check_number(attention_factor=attention_factor)
    angles = places[..., None].to(inv_freq.dtype) * inv_freq
    return angles.cos() * attention_factor, angles.sin() * attention_factor


def apply_rotary(
    x: Float[Tensor, "B H T D"],
    cos: Float[Tensor, "#B T half"],
    sin: Float[Tensor, "#B T half"],
    interleaved: bool = False,
    *,
    impl: str = "auto",
) -> Float[Tensor, "B H T D"]:
    r"""Returns queries or keys turned by their places, so that scores know only distances.

    .. math:: (a, b) \mapsto (a \cos\phi - b \sin\phi,\; b \cos\phi + a \sin\phi)

    for the pairs of the first ``2 half`` dims; the others pass.

    Args:
        x: queries or keys ``(B, H, T, D)``, with any number of heads.
        cos: ``(B or 1, T, half)``, of :func:`rotary_angles`.
        sin: the same of the sines.
        interleaved: pairs are neighbours (GPT-J); else the same place of two halves (GPT-NeoX, Llama).
        impl: ``"reference"`` or ``"auto"``.

    Returns:
        ``(B, H, T, D)`` in the dtype of ``x``, computed in the wider one of ``x`` and the angles: keep
        angles in float32 beside a bfloat16 ``x``.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype or device is wrong, or more dims would turn than there are.

    Complexity: ``6 B H T half`` operations. Source: Su et al. 2021 (2104.09864), equation 34.
    """
    sizes = _ROTARY.check(x, cos, sin)
    for name, angles in (("cos", cos), ("sin", sin)):
        if len(angles) not in (1, sizes["B"]):
            raise ValueError(f"{name} must have 1 row or B={sizes['B']}; got {len(angles)}")
    if 2 * sizes["half"] > sizes["D"]:
        raise ValueError(
            f"cos must have at most {sizes['D'] // 2} angles for D={sizes['D']}; got {sizes['half']}. "
            "Of Transformers' angles, which come twice, pass the first half"
        )
    check_flag(interleaved=interleaved)
    return implementation(METHOD.op("apply_rotary"), impl, x)(x, cos, sin, interleaved=interleaved)


def sinusoidal(
    places: Int[Tensor, "B T"], width: int, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "B T E"]:
    r"""Returns a vector for each place: waves of E / 2 lengths, as sines and cosines.

    .. math:: p_{m, 2j} = \sin(m\, 10000^{-2j/E}), \quad p_{m, 2j+1} = \cos(m\, 10000^{-2j/E})

    Args:
        places: m, whole numbers ``(B or 1, T)``.
        width: E, even.
        dtype: float32, or float64 for a model in float64.

    Returns:
        ``(B or 1, T, E)``.

    Raises:
        TypeError: ``places`` is no tensor.
        ValueError: ``width`` is odd, or places are not whole numbers.

    Source: Vaswani et al. 2017 (1706.03762), section 3.5.
    """
    _PLACES.check(places)
    check_whole(2, width=width)
    if width % 2:
        raise ValueError(f"width must be even; got {width}")
    inv_freq, _ = rotary_frequencies(width, dtype=dtype, device=places.device)
    cos, sin = rotary_angles(inv_freq, places)
    return torch.stack((sin, cos), dim=-1).flatten(-2)
