"""What every compression method keeps to. It finds the methods by itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from embedcomp import methods
from embedcomp.errors import BadSettings
from embedcomp.modules.layout import layouts
from embedcomp.modules.sizes import module_bytes
from embedcomp.planning.choices import empty_on_meta
from embedcomp.sensitivity.layer import (
    Layer,
    LinearSpec,
    LinearStatistics,
    TableSpec,
    TableStatistics,
)
from embedcomp.swapping.swap import freeze, thaw
from tests.covering import covering

TABLES = [
    TableSpec(name="mean", rows=50, dim=4, pooling="mean"),
    TableSpec(name="sum", rows=12, dim=18, pooling="sum", last_offset=False),
    TableSpec(name="sequence", rows=20, dim=3, pooling="none"),
    TableSpec(name="narrow", rows=9, dim=1, pooling="mean"),
    TableSpec(name="long", rows=700, dim=4, pooling="sum"),
    TableSpec(name="by_count", rows=70, dim=5, pooling="sum", counted=True, by_count=True),
    TableSpec(name="counted", rows=300, dim=2, pooling="mean", counted=True, padding_idx=0),
]
LINEARS = [
    LinearSpec(name="wide", inputs=13, outputs=9, bias=True, activation="relu"),
    LinearSpec(name="plain", inputs=5, outputs=12, bias=False),
    LinearSpec(name="single", inputs=10, outputs=1, bias=True),
    LinearSpec(name="nothing", inputs=0, outputs=6, bias=True, activation="relu"),
]


def form(layout):
    """A layout without its sizes, of which only zero is unlike the others."""
    if isinstance(layout, Mapping):
        return tuple((name, form(part)) for name, part in layout.items())
    if isinstance(layout, (list, tuple)):
        return len(layout)
    if isinstance(layout, str):
        return layout.rstrip("0123456789x")
    return layout if layout is None or isinstance(layout, bool) else bool(layout)


def parts(form, where=()):
    """What a form is made of: each of its values, with where it stands."""
    if not isinstance(form, tuple):
        return {(where, form)}
    named = [
        one if isinstance(one, tuple) and len(one) == 2 else (place, one)
        for place, one in enumerate(form)
    ]
    return set().union(*(parts(value, (*where, name)) for name, value in named))


def candidates():
    """All candidates, and what is said of each: the form of its layout, part by part."""
    for name in (*methods.every(), *methods.that_train()):
        method = methods.get(name)
        for spec in (*TABLES, *LINEARS):
            found = method.candidates(spec)
            if spec.name == "counted":  # the other candidates are those of tables without counts
                found = [c for c in found if getattr(c, "index", None)]
            found += [replace(c, storage="float32") for c in found[-1:] if hasattr(c, "storage")]
            if getattr(spec, "activation", None):
                found += [
                    replace(c, activation=True) for c in found[:3] if hasattr(c, "activation")
                ]
            for settings in found:
                served = nn.ModuleDict({"served": empty_on_meta(name, spec, settings)})
                yield (name, spec, settings), said_of(name, spec, parts(form(layouts(served))))


def said_of(name, spec, found):
    """Each part of a layout, and what is and what is zero in each layer."""
    sizes = [(where, value) for where, value in found if not isinstance(value, str)]
    return {*((name, part) for part in found), *((name, spec.name, size) for size in sizes)}


def parametrized():
    """Candidates of which each method has all of its layers and parts of layouts in `make test`.

    `make test-all` tries the others, which combine the same parts or differ in sizes alone, too.
    """
    every = list(candidates())
    chosen = covering([said for _, said in every])
    for place, ((name, spec, settings), _) in enumerate(every):
        label = "-".join(str(v) for v in asdict(settings).values())
        marks = [] if place in chosen else [pytest.mark.matrix]
        yield pytest.param(name, spec, settings, id=f"{name}-{spec.name}-{label}", marks=marks)


# their codes are so coarse that a step of length 1 over a whole table can leave all as they are
COARSE = (
    "column_quantized",
    "learned_scale",
    "mixed_precision",
    "product_quantization",
    "weight_clustering",
)

CANDIDATES = list(parametrized())


def pytest_generate_tests(metafunc):
    """Each test of a candidate, once for all; without the matrix, its ten thousand are not made."""
    if "settings" in metafunc.fixturenames:
        without = "not matrix" in metafunc.config.option.markexpr
        chosen = [one for one in CANDIDATES if not (without and one.marks)]
        metafunc.parametrize(("name", "spec", "settings"), chosen)


def layer_of(spec):
    """A layer with random weights and statistics."""
    generator = torch.manual_seed(4)

    def psd(n):
        root = torch.randn(n, n, generator=generator, dtype=torch.float64)
        return root @ root.T / n

    if isinstance(spec, TableSpec):
        weight = torch.randn(spec.rows, spec.dim, generator=generator)
        counts = torch.randint(0, 9, (spec.rows,), generator=generator).double()
        return Layer(spec, weight, None, TableStatistics(counts, psd(spec.dim)))
    weight = torch.randn(spec.outputs, spec.inputs, generator=generator)
    bias = torch.randn(spec.outputs, generator=generator) if spec.bias else None
    mean = torch.randn(spec.inputs, generator=generator, dtype=torch.float64)
    second = psd(spec.inputs) + mean.outer(mean)
    return Layer(spec, weight, bias, LinearStatistics(mean, second, psd(spec.outputs)))


def inputs_of(spec):
    """Arguments of the served module, and the shape of its output."""
    generator = torch.manual_seed(5)
    if isinstance(spec, LinearSpec):
        return (torch.randn(3, spec.inputs, generator=generator),), (3, spec.outputs)
    ids = torch.randint(0, spec.rows, (6,), generator=generator)
    if spec.pooling == "none":
        return (ids.view(3, 2),), (3, 2, spec.dim)
    bounds = torch.tensor([0, 2, 2, 5, 6])  # one empty bag
    return (ids, bounds if spec.last_offset else bounds[:-1]), (4, spec.dim)


@cache
def once(name, spec, settings):
    return methods.get(name).compress(layer_of(spec), settings).eval()


def compressed(name, spec, settings):
    """A copy, which a test may train, of what most tests here begin with."""
    return copy.deepcopy(once(name, spec, settings))


def tensors(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_settings_are_frozen_and_by_keyword():
    for name in (*methods.every(), *methods.that_train()):
        settings = methods.get(name).Settings
        assert is_dataclass(settings) and settings.__dataclass_params__.frozen
        assert all(field.kw_only for field in fields(settings))


def test_an_unknown_method_is_named():
    with pytest.raises(BadSettings, match="no method 'svdd'; the methods are: column_quantized"):
        methods.get("svdd")


@torch.no_grad()
def test_it_keeps_shape_and_dtype(name, spec, settings):
    arguments, shape = inputs_of(spec)
    output = compressed(name, spec, settings)(*arguments)
    assert output.shape == shape and output.dtype == torch.float32
    assert output.isfinite().all()


@torch.no_grad()
def test_it_takes_empty_bags_and_an_empty_batch(name, spec, settings):
    served = compressed(name, spec, settings)
    if isinstance(spec, LinearSpec):
        assert served(torch.empty(0, spec.inputs)).shape == (0, spec.outputs)
    elif spec.pooling == "none":
        assert served(torch.empty(0, dtype=torch.long)).shape == (0, spec.dim)
    else:
        arguments, _ = inputs_of(spec)
        assert served(*arguments)[1].eq(0).all()
        none = torch.empty(0, dtype=torch.long)
        bounds = torch.zeros(1 if spec.last_offset else 0, dtype=torch.long)
        assert served(none, bounds).shape == (0, spec.dim)


def test_it_is_as_large_as_it_said(name, spec, settings):
    said, made = empty_on_meta(name, spec, settings), compressed(name, spec, settings)
    shapes = [{n: (t.shape, t.dtype) for n, t in m.state_dict().items()} for m in (said, made)]
    assert shapes[0] == shapes[1]
    assert module_bytes(said) == module_bytes(made)


def test_the_same_input_twice_gives_the_same_tensors(name, spec, settings):
    again = methods.get(name).compress(layer_of(spec), settings)
    assert same(tensors(compressed(name, spec, settings)), tensors(again))


@torch.no_grad()
def test_it_comes_back_from_its_file_bit_for_bit(name, spec, settings):
    made, back = compressed(name, spec, settings), empty_on_meta(name, spec, settings)
    stored = {n: t.clone() for n, t in load(save(tensors(made))).items()}
    back.load_state_dict(stored, assign=True)
    arguments, _ = inputs_of(spec)
    assert torch.equal(back.eval()(*arguments), made(*arguments))


def test_it_leaves_the_original_alone(name, spec, settings):
    layer = layer_of(spec)
    before = copy.deepcopy((layer.weight, layer.bias))
    served = methods.get(name).compress(layer, settings)
    thaw(served)
    with torch.no_grad():
        for parameter in served.parameters():
            parameter.add_(1)
    assert torch.equal(layer.weight, before[0])
    assert layer.bias is None or torch.equal(layer.bias, before[1])


def test_it_trains_thawed_and_serves_what_was_trained(name, spec, settings):
    served, (arguments, _) = compressed(name, spec, settings), inputs_of(spec)
    before = served(*arguments).detach()
    thaw(served)
    served(*arguments).square().sum().backward()
    with torch.no_grad():
        for parameter in (p for p in served.parameters() if p.numel()):
            assert parameter.grad is not None
            gradient = parameter.grad.to_dense()
            step = gradient / gradient.norm().clamp_min(1e-9)
            if name in COARSE:
                step = 4 * gradient / gradient.abs().max().clamp_min(1e-9)
            parameter.sub_(step)
        trained = served(*arguments)
        freeze(served)
        assert torch.equal(served(*arguments), trained)
    assert not torch.equal(trained, before)
