"""Options of the Reformer mixer and of axial positions."""

from dataclasses import dataclass
from typing import Literal

from nonet.shapes import check_choice, check_positive, freeze_lists

Attend = Literal["bucket", "chunk", "loose"]


@dataclass(frozen=True)
class ReformerConfig:
    """Options of :class:`nonet.reformer.ReformerMixer`.

    Attributes:
        n_hashes: rounds of hashing; more rounds miss fewer of the keys that matter.
        bucket_size: tokens that a bucket holds on average at the model's longest context.
        attend: which keys a query sees; see :func:`nonet.reformer.lsh_attention`.
        n_buckets: buckets of a round, in place of ``max_length / bucket_size``.
        seed: of the rotations; each layer has its own.
        impl: the implementation, or ``"auto"``.
    """

    n_hashes: int = 2
    bucket_size: int = 32
    attend: Attend = "bucket"
    n_buckets: int | None = None
    seed: int = 0
    impl: str = "auto"

    def __post_init__(self) -> None:
        check_positive(n_hashes=self.n_hashes, bucket_size=self.bucket_size, n_buckets=self.n_buckets)
        check_choice("attend", self.attend, ("bucket", "chunk", "loose"))


@dataclass(frozen=True)
class AxialConfig:
    """Options of :class:`nonet.reformer.AxialPositions`.

    Attributes:
        shape: rows and columns of the grid that positions fill row by row; by default about square,
            large enough for the model's longest context.
        widths: numbers of a position's vector that its row and its column give; by default half each.
    """

    shape: tuple[int, int] | None = None
    widths: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        freeze_lists(self)
        for name, pair in (("shape", self.shape), ("widths", self.widths)):
            if pair is not None and (len(pair) != 2 or min(pair) < 1):
                raise ValueError(f"{name} must be two numbers above zero; got {pair}")
