"""Gradients of the matrix products: MatMul, Gemm, Einsum."""

from __future__ import annotations

from onnx_cbq.gradient.site import Gradients, Rule, Site


def matmul(site: Site) -> Gradients:
    """y = A B, batched and broadcast as in NumPy: dA = dy B^T, dB = A^T dy.

    A vector is a matrix with one row (left) or one column (right); its missing axis is put back into dy first.
    """
    b = site.build
    left, right = site.node.input
    rank_left, rank_right = len(site.shape(0)), len(site.shape(1))
    grad = site.grad
    if rank_left == 1:
        left = b.op("Unsqueeze", left, b.ints([0]))
        grad = b.op("Unsqueeze", grad, b.ints([-2 if rank_right > 1 else 0]))
    if rank_right == 1:
        right, grad = b.op("Unsqueeze", right, b.ints([1])), b.op("Unsqueeze", grad, b.ints([-1]))
    gradients: list[str | None] = [None, None]
    if site.needed[0]:
        full = b.op("MatMul", grad, _transpose(site, right, max(rank_right, 2)))
        gradients[0] = _sum_batch(site, full, 0, max(rank_left, rank_right, 2))
    if site.needed[1] and rank_right == 2 and rank_left > 2:
        # All rows at once, and not a matrix for each sample to be summed.
        rows, dy = (b.op("Reshape", name, b.ints([-1, n])) for name, n in zip((left, grad), site.shape(1), strict=True))
        gradients[1] = b.op("Gemm", rows, dy, transA=1)
    elif site.needed[1]:
        full = b.op("MatMul", _transpose(site, left, max(rank_left, 2)), grad)
        gradients[1] = _sum_batch(site, full, 1, max(rank_left, rank_right, 2))
    return gradients


def _transpose(site: Site, name: str, rank: int) -> str:
    """Swap the last two axes; a constant is transposed here, not at every run."""
    value = site.model.constant(name)
    if value is not None:
        return site.build.constant(value.swapaxes(-1, -2))
    return site.build.op("Transpose", name, perm=[*range(rank - 2), rank - 1, rank - 2])


def _sum_batch(site: Site, name: str, index: int, rank: int) -> str:
    """Sum `name` [batch..., rows, columns] over the batch axes that input `index` was broadcast along."""
    other, own = site.shape(1 - index), site.shape(index)
    wide = (1,) * (rank - len(other)) + tuple(other)
    padded = (1,) * (rank - max(len(own), 2)) + tuple(own if len(own) > 1 else (1, 1))
    axes = [axis for axis in range(rank - 2) if padded[axis] == 1 and wide[axis] != 1]
    summed = site.build.reduce_sum(name, axes)
    return summed if len(own) == rank else site.build.reshape_like(summed, site.node.input[index])


def gemm(site: Site) -> Gradients:
    """y = alpha A' B' + beta C, where ' transposes if transA or transB say so.

    dA' = alpha dy B'^T and dB' = alpha A'^T dy, transposed back by swapping the factors.
    """
    b = site.build
    left, right = site.node.input[:2]
    alpha = float(site.attrs.get("alpha", 1.0))
    flip_left, flip_right = int(site.attrs.get("transA", 0)), int(site.attrs.get("transB", 0))
    gradients: list[str | None] = [None, None, None]
    if site.needed[0] and flip_left:
        gradients[0] = b.op("Gemm", right, site.grad, alpha=alpha, transA=flip_right, transB=1)
    elif site.needed[0]:
        gradients[0] = b.op("Gemm", site.grad, right, alpha=alpha, transB=1 - flip_right)
    if site.needed[1] and flip_right:
        gradients[1] = b.op("Gemm", site.grad, left, alpha=alpha, transA=1, transB=flip_left)
    elif site.needed[1]:
        gradients[1] = b.op("Gemm", left, site.grad, alpha=alpha, transA=1 - flip_left)
    if len(site.needed) > 2 and site.needed[2]:
        scaled = b.op("Mul", site.grad, b.number(float(site.attrs.get("beta", 1.0))))
        gradients[2] = site.sum_to_input(scaled, 2)
    return gradients


def einsum(site: Site) -> Gradients:
    """y = einsum(terms -> result): the gradient of one operand is the einsum of dy and the others, to its term.

    An index that stands in no other term and not in the result was summed over: there the gradient is constant.
    """
    terms, result = _explicit_terms(site)
    gradients: list[str | None] = []
    for i, needed in enumerate(site.needed):
        gradients.append(_einsum_gradient(site, terms, result, i) if needed else None)
    return gradients


def _einsum_gradient(site: Site, terms: list[str], result: str, i: int) -> str:
    b = site.build
    others = [(term, name) for j, (term, name) in enumerate(zip(terms, site.node.input, strict=True)) if j != i]
    if len(set(terms[i])) != len(terms[i]):
        raise site.unsupported("a repeated index in one operand")
    reachable = set(result).union(*(term for term, _ in others))
    kept = "".join(index for index in terms[i] if index in reachable)
    equation = ",".join([result, *(term for term, _ in others)]) + "->" + kept
    gradient = b.op("Einsum", site.grad, *(name for _, name in others), equation=equation)
    if kept == terms[i]:
        return gradient
    missing = [axis for axis, index in enumerate(terms[i]) if index not in reachable]
    widened = b.op("Unsqueeze", gradient, b.ints(missing))
    return b.op("Expand", widened, b.op("Shape", site.node.input[i]))


def _explicit_terms(site: Site) -> tuple[list[str], str]:
    """Operand terms and result term without blanks, the ellipsis spelled out in free letters."""
    equation = site.attrs["equation"].replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    used = set(equation)
    free = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if letter not in used]
    extra = [len(site.shape(i)) - len(term.replace("...", "")) for i, term in enumerate(terms)]
    if "..." in equation and len({n for n, term in zip(extra, terms, strict=True) if "..." in term}) > 1:
        raise site.unsupported("an ellipsis of different rank in each operand")
    letters = "".join(free[: max(extra)]) if "..." in equation else ""
    if not arrow:
        counts = {index: left.count(index) for index in left if index.isalpha()}
        result = ("..." if "..." in left else "") + "".join(sorted(i for i, n in counts.items() if n == 1))
    terms, result = [term.replace("...", letters) for term in terms], result.replace("...", letters)
    sizes: dict[str, set[int]] = {}
    for i, term in enumerate(terms):
        for index, size in zip(term, site.shape(i), strict=True):
            sizes.setdefault(index, set()).add(size)
    if any(len(found) > 1 for found in sizes.values()):
        raise site.unsupported("operands that are broadcast along an index")
    return terms, result


RULES: dict[str, Rule] = {"MatMul": matmul, "Gemm": gemm, "Einsum": einsum}
