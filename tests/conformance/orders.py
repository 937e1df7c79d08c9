"""Right results as other processors and matrix libraries give them: the same sums in other orders."""

import torch
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

LIBRARIES = ("torch", "oneDNN", "OpenBLAS")  # torch's own is MKL in its builds for x86


class Order(TorchDispatchMode):
    """Takes sums and matrix products in another order, or by another library, in float32 and bfloat16."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        mine = OPERATIONS.get(func._schema.name.removeprefix("aten::"))
        if mine is None or self.name == "torch" or args[0].dtype not in (torch.float32, torch.bfloat16):
            return func(*args, **kwargs)
        return mine(self.name, *args, **kwargs).to(args[0].dtype)  # half precision is summed in float32


def one_by_one(terms):
    """The loop over k of a matrix kernel."""
    total = terms.new_zeros(terms.shape[:-1])
    for k in range(terms.shape[-1]):
        total = total + terms[..., k]
    return total


def halves(terms):
    """Pairwise summation."""
    while (n := terms.shape[-1]) > 1:
        terms = pad(terms, (0, n % 2))
        terms = terms[..., ::2] + terms[..., 1::2]
    return terms.sum(-1)  # of one term, or of none


def lanes(terms):
    """A vector of sixteen partial sums, then these."""
    return halves(one_by_one(pad(terms, (0, -terms.shape[-1] % 16)).unflatten(-1, (-1, 16)).mT))


ORDERS = {
    "one by one": one_by_one,
    "last first": lambda terms: one_by_one(terms.flip(-1)),
    "halves": halves,
    "lanes": lanes,
}


def _product(order, a, b):
    a, b = a.detach().float(), b.detach().float()
    if order in ORDERS:
        return ORDERS[order](a[..., :, None, :] * b.mT[..., None, :, :])
    if order == "OpenBLAS":
        return torch.from_numpy(a.numpy() @ b.numpy())
    if a.dim() == 3:
        return torch.stack([_product(order, *pair) for pair in zip(a, b, strict=True)])
    return torch.ops.mkldnn._linear_pointwise(a.contiguous(), b.mT.contiguous(), None, "none", [], "")


def _product_and_more(order, c, a, b, *, beta=1, alpha=1):
    return beta * c.float() + alpha * _product(order, a, b)


def _sum(order, x, dims=None, keepdim=False, dtype=None):
    dims = [d % x.dim() for d in dims or range(x.dim())]
    kept = [d for d in range(x.dim()) if d not in dims]
    terms = x.float().permute(*kept, *dims).flatten(len(kept)) if dims else x.float()[None]
    total = ORDERS.get(order, halves)(terms)  # a library of products leaves sums to others
    return total.view([1 if d in dims else n for d, n in enumerate(x.shape)]) if keepdim else total


def _mean(order, x, dims=None, keepdim=False, dtype=None):
    total = _sum(order, x, dims, keepdim)
    return total * (total.numel() / x.numel())


OPERATIONS = {
    "mm": _product,
    "bmm": _product,
    "addmm": _product_and_more,
    "baddbmm": _product_and_more,
    "sum": _sum,
    "mean": _mean,
}
