"""From the exported program of a model's dense part to a Graph, which needs no torch to be run.

The program is run on numbers that say where values come from instead of on the values: whatever
only moves values about (views, slices, concatenations, transpositions) thereby explains itself.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as FxNode

from embedcomp.graph.graph import Node, Run

ROWS = 3  # of the batch on which the program is run; all rows must fare alike
STEP = 1 << 50  # from a row's column numbers to the next row's
IDS = 1 << 40  # the first number of columns that hold ids, which only lookups read
MOST_IDS = 1 << 20  # columns of one input of ids

# None works in place: what reads the old value afterwards would not be seen to. Where a program
# has such an operation, it is decomposed first, which turns it into another.
_MOVES = {
    *("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "transpose", "permute"),
    *("t", "numpy_T", "slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind"),
    *("cat", "concat", "stack", "hstack", "expand", "expand_as", "repeat", "index", "index_select"),
    *("flip", "contiguous", "clone", "alias", "detach", "movedim", "swapaxes", "tile", "roll"),
    *("view_as", "reshape_as", "broadcast_to", "_unsafe_view", "ravel"),
    *("lift_fresh_copy", "diagonal", "tensor_split", "view_copy", "expand_copy", "_reshape_alias"),
}
_SAME = {"dropout", "to", "_to_copy", "_assert_tensor_metadata"}
UNARY = {
    **{n: n for n in ("relu", "sigmoid", "tanh", "silu", "abs", "exp", "log", "sqrt", "rsqrt")},
    **{"square": "square", "reciprocal": "reciprocal", "neg": "negative"},
    **{n: n for n in ("gelu", "logit", "softplus")},
}
WHOLE = {*UNARY, "matmul"}  # what is traced more easily than what it is made of
_CLAMPS = ("clamp", "clamp_min", "clamp_max", "hardtanh")
_SLOPES = {"leaky_relu": 0.01, "elu": 1.0}  # below zero, unless the program says otherwise
_BINARY = {"mul": "multiply", "add": "add", "sub": "subtract", "div": "divide"} | {
    "maximum": "maximum",
    "minimum": "minimum",
    "pow": "power",
}
_NAMED = {  # arguments that come by name; an operation with others is not known
    **{
        "addmm": {"beta", "alpha"},
        "add": {"alpha"},
        "sub": {"alpha"},
        "rsub": {"alpha"},
        "gelu": {"approximate"},
    },
    **{"sum": {"dim", "keepdim"}, "mean": {"dim", "keepdim"}, "clamp": {"min", "max"}},
}
_FLOAT32 = (None, torch.float32)  # types that a result may be asked for in
_POWERS = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


class CannotTrace(Exception):
    """An operation that the engine does not have; the message names it and where it stands."""


@dataclass(frozen=True)
class PerRow:
    """A value that differs from row to row: the columns that it is made of, [ROWS * n, ...]."""

    columns: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.columns.shape

    @property
    def of_a_row(self) -> Tensor:
        return self.columns.reshape(ROWS, -1)[0]


@dataclass(frozen=True)
class Fixed:
    """A value that is the same for every row, and the columns that hold it, if it is a weight."""

    value: Tensor
    columns: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.value.shape


class Tracer:
    """Collects the nodes of a graph.

    Args:
        weights: tensors by name, of which the program has some as inputs.
    """

    def __init__(self, weights: Mapping[str, Tensor]):
        self.nodes: list[Node] = []
        self._weights = weights
        self._weight_at: dict[str, Tensor] = {}
        self._next = 0

    def source(self, shape: Sequence[int], **what: Any) -> PerRow:
        """New columns for a value with this shape of a row."""
        return self._new((ROWS, *shape), **what)

    def ids(self, shape: Sequence[int], leaf: int) -> PerRow:
        """Columns of an input of ids."""
        at = IDS + leaf * MOST_IDS + torch.arange(math.prod(shape))
        return PerRow((at + STEP * torch.arange(ROWS)[:, None]).reshape(ROWS, *shape))

    def weight(self, name: str) -> Fixed:
        value = self._weights[name]
        if not value.is_floating_point():
            return Fixed(value)
        if name not in self._weight_at:
            at = self._add(op="weight", width=value.numel(), name=name)
            self._weight_at[name] = at + torch.arange(value.numel()).view(value.shape)
        return Fixed(value, self._weight_at[name])

    def run(self, graph: torch.fx.Graph, inputs: Sequence[Any]) -> Any:
        """What the program gives, in terms of the nodes.

        Args:
            inputs: PerRow or Fixed for every placeholder, in their order.

        Raises:
            CannotTrace: the engine lacks an operation.
        """
        found: dict[FxNode, Any] = {}
        waiting = iter(inputs)
        for node in graph.nodes:
            if node.op == "placeholder":
                found[node] = next(waiting)
            elif node.op == "get_attr":
                found[node] = Fixed(_attribute(graph.owning_module, str(node.target)))
            elif node.op == "call_function":
                args = torch.fx.map_arg(node.args, lambda n: found[n])
                kwargs = torch.fx.map_arg(node.kwargs, lambda n: found[n])
                try:
                    found[node] = self._call(node.target, args, kwargs)
                except CannotTrace as error:
                    raise CannotTrace(f"{error}{_line(node)}") from error
            else:
                return torch.fx.map_arg(node.args[0], lambda n: found[n])
        raise AssertionError("a graph ends with its output")

    def _call(self, target: Any, args: Any, kwargs: Any) -> Any:  # noqa: PLR0911 - one a kind
        everything, name = _flat((args, kwargs)), operation_name(target)
        held = [a for a in everything if isinstance(a, PerRow | Fixed)]
        if name.startswith(("_assert", "sym_constrain")):
            return None
        if not all(isinstance(a, _KNOWN) for a in everything):
            raise CannotTrace(f"{name} of a jagged input")
        if name == "sym_size":
            return held[0].shape[args[1]]
        if not held:  # arithmetic with sizes, or a constant
            result = target(*args, **kwargs)
            return Fixed(result) if isinstance(result, Tensor) else result
        if target is operator.getitem:
            return args[0][args[1]]
        if all(isinstance(h, Fixed) and h.columns is None for h in held):
            result = target(*_map(args, _value), **_map(kwargs, _value))
            return _map(result, Fixed) if isinstance(result, tuple | list) else Fixed(result)
        if name in _SAME:
            asked = {a for a in everything if isinstance(a, torch.dtype)}
            if isinstance(args[0], PerRow) and not asked <= _types(args[0]):
                raise CannotTrace(f"{name} to another type")
            if name == "dropout" and args[2]:
                raise CannotTrace("dropout while it scores")
            return args[0]
        return (self._move if name in _MOVES else self._compute)(target, args, kwargs)

    def _move(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Views and the like: run on the columns' numbers."""
        held = [a for a in _flat((args, kwargs)) if isinstance(a, PerRow | Fixed)]
        rows = any(isinstance(h, PerRow) for h in held)
        if not rows and any(h.columns is None for h in held[:1]):
            raise CannotTrace(f"{operation_name(target)} of a constant")

        def columns(value: PerRow | Fixed) -> Tensor:
            if isinstance(value, PerRow):
                return value.columns
            return value.value if value.columns is None else value.columns

        moved = target(*_map(args, columns), **_map(kwargs, columns))
        if rows:
            return _map(moved, _rows) if isinstance(moved, tuple | list) else _rows(moved)
        values = target(*_map(args, _value), **_map(kwargs, _value))
        if isinstance(moved, tuple | list):
            return [Fixed(v, c) for v, c in zip(values, moved, strict=True)]
        return Fixed(values, moved)

    def _compute(self, target: Any, args: Any, kwargs: Any) -> Any:
        name = operation_name(target)
        if set(kwargs) - _NAMED.get(name, set()):
            raise CannotTrace(f"{name} with {', '.join(kwargs)}")
        operations: dict[str, Callable[[], Any]] = {
            "linear": lambda: self._linear(args[0], args[1], args[2] if len(args) > 2 else None),
            "addmm": lambda: self._addmm(*args, **kwargs),
            **dict.fromkeys(("mm", "matmul", "bmm"), lambda: self._product(args[0], args[1])),
            **dict.fromkeys(_BINARY, lambda: self._binary(name, args[0], args[1], kwargs)),
            "rsub": lambda: self._binary("sub", args[1], args[0], kwargs),
            **dict.fromkeys(("sum", "mean"), lambda: self._sum(name, args, kwargs)),
            **dict.fromkeys(_CLAMPS, lambda: self._clamp(name, args, kwargs)),
            "layer_norm": lambda: self._layer_norm(*args),
            "batch_norm": lambda: self._batch_norm(args[:5], args[5], args[7]),
            # decomposed; only training reads its other results
            "_native_batch_norm_legit_no_training": lambda: [
                self._batch_norm(args[:5], False, args[6])
            ],
            "softmax": lambda: self._softmax(*args),
            "_softmax": lambda: self._softmax(*args[:2]),  # decomposed, and of float32 as all is
        }
        if name in operations:
            return operations[name]()
        if name in UNARY and len(args) == 1:
            tanh = name == "gelu" and kwargs.get("approximate") == "tanh"
            return self._unary("gelu_tanh" if tanh else UNARY[name], args[0])
        if name in _SLOPES and len(args) <= 2:
            return self._unary(name, args[0], low=args[1] if len(args) > 1 else _SLOPES[name])
        raise CannotTrace(name)

    def _unary(self, name: str, x: Any, low: float = 0.0, high: float = 0.0) -> PerRow:
        if not isinstance(x, PerRow):
            raise CannotTrace(f"{name} of a weight")
        return self._new(x.shape, op="unary", name=name, x=_runs(x.columns), low=low, high=high)

    def _clamp(self, name: str, args: Any, kwargs: Any) -> PerRow:
        bounds = [*args[1:], None, None]
        low, high = kwargs.get("min", bounds[0]), kwargs.get("max", bounds[1])
        if name == "clamp_max":
            low, high = None, low
        elif name == "hardtanh":
            low, high = (-1.0 if low is None else low), (1.0 if high is None else high)
        if not all(b is None or isinstance(b, int | float) for b in (low, high)):
            raise CannotTrace("clamp by a tensor")
        low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
        return self._unary("clamp", args[0], low=low, high=high)

    def _binary(self, name: str, x: Any, y: Any, kwargs: Any) -> PerRow:
        scale = kwargs.get("alpha", 1)
        if isinstance(y, int | float):
            return self._with_number(name, x, y * scale)
        if isinstance(x, int | float):
            if name in ("add", "mul"):
                return self._with_number(name, y, x)
            if name == "sub":
                return self._unary("affine", y, low=-scale, high=x)
            if name == "div":
                return self._with_number("mul", self._unary("reciprocal", y), x)
            raise CannotTrace(f"{name} of a number")
        if scale != 1:
            y = self._unary("affine", y, low=scale)
        if not (isinstance(x, PerRow) or isinstance(y, PerRow)):
            raise CannotTrace(f"{name} of weights")
        a, b = torch.broadcast_tensors(self._columns(x), self._columns(y))
        return self._new(a.shape, op="binary", name=_BINARY[name], x=_runs(a), y=_runs(b))

    def _with_number(self, name: str, x: Any, y: float) -> PerRow:
        if name == "pow":
            if y not in _POWERS:
                raise CannotTrace(f"power {y}")
            return self._unary(_POWERS[y], x)
        if name not in ("add", "sub", "mul", "div"):
            raise CannotTrace(f"{name} with a number")
        if name == "div":
            if y == 0:
                raise CannotTrace("a division by zero")
            name, y = "mul", 1 / y
        low, high = {"mul": (y, 0.0), "add": (1.0, y), "sub": (1.0, -y)}[name]
        return self._unary("affine", x, low=low, high=high)

    def _columns(self, value: Any) -> Tensor:
        """The columns of a value; those of a weight are every row's."""
        if isinstance(value, PerRow):
            return value.columns
        if isinstance(value, Fixed) and value.columns is not None:
            return value.columns
        raise CannotTrace("a number that is no weight")

    def _linear(self, x: Any, weight: Any, bias: Any) -> PerRow:
        if not isinstance(x, PerRow) or not isinstance(weight, Fixed):
            raise CannotTrace("a product with a weight that differs from row to row")
        outputs, inputs = weight.value.shape
        plain = bias is None or (isinstance(bias, Fixed) and bias.value.shape == (outputs,))
        if not plain:
            raise CannotTrace("a bias that differs from row to row")
        if not inputs:  # what is left is the bias, the same for every row
            return PerRow(self._columns(bias).expand(*x.shape[:-1], outputs))
        name, form, column = self._matrix(weight)
        times = x.of_a_row.numel() // inputs
        product = self._new(
            (*x.shape[:-1], outputs),
            op="linear",
            x=_runs(x.columns),
            name=name,
            form=form,
            column=column,
            bias="" if bias is None else self._whole(bias),
            times=times,
            inputs=inputs,
            outputs=outputs,
        )
        return product

    def _whole(self, weight: Fixed) -> str:
        """The name of a weight that is used as it is."""
        for name, columns in self._weight_at.items():
            if weight.columns is not None and torch.equal(columns, weight.columns):
                return name
        raise CannotTrace("a product with a part of a weight")

    def _matrix(self, weight: Fixed) -> tuple[str, str, int]:
        """A matrix as a weight's name, "" or "transposed", and where in the weight it begins."""
        for form in ("", "transposed"):
            columns = weight.columns if not form else _turned(weight).columns
            runs = [] if columns is None else _neighbours(columns.reshape(-1))
            if len(runs) == 1:
                first, count = runs[0]
                for name, held in self._weight_at.items():
                    if not held.numel():
                        continue
                    column = first - int(held.view(-1)[0])
                    if 0 <= column <= held.numel() - count:
                        return name, form, column
        raise CannotTrace("a product with scattered numbers of a weight")

    def _addmm(self, bias: Any, x: Any, y: Any, *, beta: float = 1, alpha: float = 1) -> PerRow:
        if alpha == beta == 1:
            return self._linear(x, _turned(y), bias)
        product = self._with_number("mul", self._product(x, y), alpha)
        added = PerRow(self._columns(bias).expand(product.shape))
        return self._binary("add", product, self._with_number("mul", added, beta), {})

    def _product(self, x: Any, y: Any) -> PerRow:
        if isinstance(x, PerRow) and isinstance(y, Fixed) and y.value.dim() == 2:
            return self._linear(x, _turned(y), None)
        # x times every row's matrix
        if isinstance(x, Fixed) and isinstance(y, PerRow) and x.value.dim() == 2:
            turned = self._linear(_rows(y.columns.transpose(-1, -2)), x, None)
            return _rows(turned.columns.transpose(-1, -2))
        both = isinstance(x, PerRow) and isinstance(y, PerRow)
        if both and len(x.shape) > 2 and x.shape[:-2] == y.shape[:-2]:
            return self._batched(x.columns, y.columns.transpose(-1, -2))
        raise CannotTrace("a product of this kind")

    def _batched(self, x: Tensor, y: Tensor) -> PerRow:
        """x [B, ..., n, width] and y [B, ..., m, width] to their dot products [B, ..., n, m]."""
        pairs = zip(*(of.reshape(ROWS, -1, *of.shape[-2:]).unbind(1) for of in (x, y)), strict=True)
        products = torch.stack([self._dots(*pair).columns for pair in pairs], 1)
        return PerRow(products.reshape(*x.shape[:-1], y.shape[-2]))

    def _dots(self, x: Tensor, y: Tensor) -> PerRow:
        """x [B, n, width] and y [B, m, width] to their dot products [B, n, m]."""
        return self._new(
            (ROWS, x.shape[1], y.shape[1]),
            op="dots",
            x=_runs(x),
            y=() if torch.equal(x, y) else _runs(y),
            times=x.shape[1],
            inputs=x.shape[2],
            outputs=y.shape[1],
        )

    def _sum(self, name: str, args: Any, kwargs: Any) -> PerRow:
        x, dims = args[0], args[1] if len(args) > 1 else kwargs.get("dim")
        keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
        if not isinstance(x, PerRow) or dims is None:
            raise CannotTrace(f"{name} over all rows")
        rank = x.columns.dim()
        over = sorted({d % rank for d in ([dims] if isinstance(dims, int) else dims)})
        kept = [d for d in range(rank) if d not in over]
        if 0 in over or len(x.columns) != ROWS:
            raise CannotTrace(f"{name} over all rows")
        first = x.columns.permute(0, *over, *kept[1:]).reshape(ROWS, -1)
        times = math.prod(x.shape[d] for d in over)
        shape = [1 if d in over else x.shape[d] for d in range(rank)]
        total = self._new(shape, op="sum", x=_runs(first), times=times)
        if not keep:
            total = _rows(total.columns.reshape([x.shape[d] for d in kept]))
        return self._unary("affine", total, low=1 / times) if name == "mean" else total

    def _softmax(self, x: Any, dim: int, dtype: torch.dtype | None = None) -> PerRow:
        if not isinstance(x, PerRow) or dim % x.columns.dim() == 0 or dtype not in _FLOAT32:
            raise CannotTrace("softmax of this kind")
        raised = self._unary("exp", self._binary("sub", x, self._largest(x, dim), {}))
        return self._binary("div", raised, self._sum("sum", (raised, dim, True), {}), {})

    def _largest(self, x: PerRow, dim: int) -> PerRow:
        """The largest along a dimension, of which 1 is left: one half against the other."""
        while (count := x.shape[dim]) > 1:
            half = count // 2
            low, high, odd = x.columns.split([half, half, count - 2 * half], dim)
            larger = self._binary("maximum", PerRow(low), PerRow(high), {})
            x = PerRow(torch.cat([larger.columns, odd], dim))
        return x

    def _layer_norm(
        self,
        x: PerRow,
        shape: Sequence[int],
        weight: Fixed | None = None,
        bias: Fixed | None = None,
        epsilon: float = 1e-5,
        _: bool = False,
    ) -> PerRow:
        dims = list(range(-len(shape), 0))
        off = self._binary("sub", x, self._sum("mean", (x, dims, True), {}), {})
        variance = self._sum("mean", (self._unary("square", off), dims, True), {})
        scale = self._unary("rsqrt", self._unary("affine", variance, low=1.0, high=epsilon))
        normed = self._binary("mul", off, scale, {})
        if weight is not None:
            normed = self._binary("mul", normed, weight, {})
        return normed if bias is None else self._binary("add", normed, bias, {})

    def _batch_norm(self, given: Sequence[Any], training: bool, epsilon: float) -> PerRow:
        """By the running mean and variance [C] of dimension 1 of x [B, C, ...].

        Args:
            given: x, the weight and bias [C] or None, the mean and the variance.
        """
        x, weight, bias, mean, variance = given
        if training or mean is None or variance is None:
            raise CannotTrace("batch_norm by the batch's own mean and variance")

        def alike(value: Fixed) -> PerRow:  # repeated in all rows
            columns = self._columns(value).view(1, -1, *[1] * (len(x.shape) - 2))
            return PerRow(columns.expand(ROWS, *columns.shape[1:]))

        spread = self._unary("affine", alike(variance), low=1.0, high=epsilon)
        off = self._binary("sub", x, alike(mean), {})
        normed = self._binary("mul", off, self._unary("rsqrt", spread), {})
        if weight is not None:
            normed = self._binary("mul", normed, alike(weight), {})
        return normed if bias is None else self._binary("add", normed, alike(bias), {})

    def _new(self, shape: Sequence[int], **what: Any) -> PerRow:
        """A new node, whose columns lie in the order of a value of this shape, the batch first."""
        if len(shape) == 0 or math.prod(shape) % ROWS or shape[0] % ROWS:
            raise CannotTrace(f"{what.get('name') or what['op']} of something that is not a batch")
        width = math.prod(shape) // ROWS
        at = self._add(width=width, **what)
        columns = at + torch.arange(width) + STEP * torch.arange(ROWS)[:, None]
        return PerRow(columns.reshape(tuple(shape)))

    def _add(self, **what: Any) -> int:
        node = Node(at=self._next, **what)
        self.nodes.append(node)
        self._next += node.width
        return node.at


def id_column(column: int) -> tuple[int, int]:
    """The leaf and the column in it.

    Raises:
        CannotTrace: it holds no ids.
    """
    if column < IDS:
        raise CannotTrace("way to make ids of other numbers")
    return divmod(column - IDS, MOST_IDS)


def pruned(nodes: Sequence[Node], out: int) -> tuple[Node, ...]:
    """The nodes that something is read of, without those that are not."""
    needed: list[Run] = [(out, 1)]
    kept = []
    for node in reversed(nodes):
        end = node.at + node.width
        if any(first < end and node.at < first + number for first, number in needed):
            kept.append(node)
            needed += (*node.x, *node.y)
    return tuple(reversed(kept))


def _types(value: PerRow) -> set[torch.dtype]:
    """Types that a value can have without a change of its numbers."""
    ids = bool((value.of_a_row >= IDS).all())
    return {torch.int32, torch.int64} if ids else {torch.float32}


def _runs(columns: Tensor) -> tuple[Run, ...]:
    """One row's columns as runs of neighbours."""
    row = columns.reshape(ROWS, -1)[0]
    if (row >= IDS).any():
        raise CannotTrace("arithmetic with ids")
    return _neighbours(row)


def _neighbours(row: Tensor) -> tuple[Run, ...]:
    """Numbers of columns [n] as runs of neighbours."""
    breaks = torch.nonzero(row.diff() != 1).view(-1) + 1
    starts = [0, *breaks.tolist(), len(row)]
    return tuple((int(row[a]), b - a) for a, b in pairwise(starts) if b > a)


def _rows(columns: Tensor) -> PerRow:
    """A value made of these columns, of which some may be weights.

    Raises:
        CannotTrace: the rows of the batch do not fare alike.
    """
    alike = columns.dim() > 0 and columns.shape[0] % ROWS == 0
    if alike:
        rows = columns.reshape(ROWS, -1)
        step, wanted = rows - rows[0], STEP * torch.arange(ROWS)[:, None]
        alike = bool(((step == wanted).all(0) | (step == 0).all(0)).all())
    if not alike:
        raise CannotTrace("something that mixes the rows of a batch")
    return PerRow(columns)


_KNOWN = (
    *(PerRow, Fixed, int, float, bool, str, type(None), Tensor, slice),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)


def _turned(value: Any) -> Any:
    if not isinstance(value, Fixed):
        return value
    columns = None if value.columns is None else value.columns.T
    return replace(value, value=value.value.T, columns=columns)


def _value(held: Any) -> Any:
    return held.value if isinstance(held, Fixed) else held


def _flat(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [leaf for child in value for leaf in _flat(child)]
    if isinstance(value, dict):
        return [leaf for child in value.values() for leaf in _flat(child)]
    return [value]


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_map(child, change) for child in value)
    if isinstance(value, dict):
        return {name: _map(child, change) for name, child in value.items()}
    return change(value) if isinstance(value, PerRow | Fixed | Tensor) else value


def operation_name(target: Any) -> str:
    """Without its overload, as in "add"."""
    name = getattr(target, "_opname", None) or getattr(target, "__name__", target)
    return str(name).split(".")[0]


def _attribute(module: Any, name: str) -> Tensor:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def _line(node: FxNode) -> str:
    lines = [line for line in (node.stack_trace or "").splitlines() if "File" in line]
    return f" ({lines[-1].strip()})" if lines else ""
