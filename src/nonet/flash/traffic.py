"""How much attention moves between slow and fast memory: counted, and by formula.

Time on a GPU is spent on this traffic more than on arithmetic, which is the observation that FlashAttention
rests on. A tile of :func:`nonet.flash.tiled_attention` passes through a :class:`Traffic` whenever it crosses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nonet.shapes import check_flag, check_whole


@dataclass
class Traffic:
    """Counts the bytes of the tiles that cross between the two memories.

    Attributes:
        read_bytes: bytes read from slow memory.
        written_bytes: bytes written to slow memory.
    """

    read_bytes: int = 0
    written_bytes: int = 0

    @property
    def total(self) -> int:
        """Bytes moved in both directions."""
        return self.read_bytes + self.written_bytes

    def read(self, slow: Tensor) -> Tensor:
        """Returns a tile for use in fast memory, where sums are in float32 or wider."""
        self.read_bytes += slow.nbytes
        return slow.to(torch.promote_types(slow.dtype, torch.float32))

    def write(self, slow: Tensor, tile: Tensor) -> None:
        """Puts a tile back into slow memory, rounded to the dtype that is kept there."""
        self.written_bytes += slow.nbytes
        slow.copy_(tile)


def tiled_bytes(
    length: int, width: int, block_q: int, block_k: int, *, item: int = 4, backward: bool = False
) -> int:
    r"""Returns the bytes that one head of unmasked ``tiled_attention`` moves.

    With N = ``length``, d = ``width``, i = ``item``, and sums kept in a = max(i, 4) bytes:

    .. math::
        \text{forward} &= N d i\,(2 + 2 \lceil N / B_q \rceil) + N a \\
        \text{backward} &= N d\,(7 i + a) + N a + \lceil N / B_k \rceil\, (N d\,(2 i + 2 a) + 2 N a)

    Tiles of q, k, v and the output fill a fast memory of M numbers when :math:`B_q = M / 4 d`; the forward
    pass then reads :math:`8 N^2 d^2 / M` numbers of keys and values, the paper's
    :math:`\Theta(N^2 d^2 / M)`.

    Args:
        length: queries and keys N.
        width: head width d.
        block_q: queries of a tile.
        block_k: keys of a tile.
        item: bytes of a number in slow memory.
        backward: the backward pass alone, instead of the forward pass.

    Source: Dao et al. 2022 (2205.14135), theorem 2, for the loops of Dao 2023 (2307.08691).
    """
    check_whole(length=length, width=width, block_q=block_q, block_k=block_k, item=item)
    check_flag(backward=backward)
    matrix, total, row = length * width * item, length * width * max(item, 4), length * max(item, 4)
    if not backward:
        return 2 * matrix + 2 * matrix * -(-length // block_q) + row
    return 7 * matrix + total + row + -(-length // block_k) * (2 * matrix + 2 * total + 2 * row)


def standard_bytes(length: int, width: int, *, item: int = 4, backward: bool = False) -> int:
    r"""Returns the bytes that one head of attention moves when it stores its matrices of N x N numbers.

    .. math:: \text{forward} = (4 N d + 4 N^2)\, i, \quad \text{backward} = (8 N d + 7 N^2)\, i

    Forward writes S, reads it to write P, and reads P; backward reads P, writes dP, reads both to write dS,
    and reads dS twice. Masks and dropout, which take further passes over N x N numbers, are not counted.

    Args:
        length: queries and keys N.
        width: head width d.
        item: bytes of a number.
        backward: the backward pass alone, instead of the forward pass.

    Source: Dao et al. 2022 (2205.14135), algorithms 0 and 3.
    """
    check_whole(length=length, width=width, item=item)
    check_flag(backward=backward)
    matrix, scores = length * width * item, length * length * item
    return 8 * matrix + 7 * scores if backward else 4 * matrix + 4 * scores
