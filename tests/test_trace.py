"""hyperlog.trace: the rules of hypertrace, and what is different on purpose."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections import deque
from types import MappingProxyType

import pytest

from hyperlog import trace as trace_module
from hyperlog.trace import (
    Trace,
    clear_trace_function,
    create_tracer,
    failures,
    set_trace_function,
)


@pytest.fixture(autouse=True)
def tracing_off_afterwards():
    yield
    clear_trace_function()


@pytest.fixture
def traces() -> list[Trace]:
    received: list[Trace] = []
    set_trace_function(received.append)
    return received


class Store:
    def __init__(self, **options) -> None:
        self.tracer = create_tracer(self, **options)

    def put(self, *args, **kwargs) -> None:
        self.tracer.trace(*args, **kwargs)

    def put_deep(self) -> None:
        def inner() -> None:
            self.tracer.trace()

        inner()
        (lambda: self.tracer.trace())()


class SpecialStore(Store):
    pass


def test_all_fields_of_the_original_arrive(traces):
    parent = Store(props={"level": 0})
    child = SpecialStore(parent=parent.tracer, props={"level": 1})
    child.put("stored", {"key": "k"})
    line = Store.put.__code__.co_firstlineno + 1

    (trace,) = traces
    assert trace.id == "stored"
    assert trace.object.class_name == "SpecialStore"
    assert trace.object.id == child.tracer.object_id
    assert trace.object.props == {"level": 1}
    assert trace.object.ctx is child
    assert trace.parent_object.class_name == "Store"
    assert trace.parent_object.id == parent.tracer.object_id
    assert trace.parent_object.props == {"level": 0}
    assert trace.parent_object.ctx is parent
    assert trace.caller.function_name == "put"
    assert trace.caller.filename == __file__
    assert trace.caller.line == line
    assert trace.caller.column == 9
    assert trace.caller.props == {"key": "k"}


@pytest.mark.parametrize(
    ("args", "kwargs", "id", "props"),
    [
        ((), {}, None, None),
        (("id",), {}, "id", None),
        (({"a": 1},), {}, None, {"a": 1}),
        (("id", {"a": 1}), {}, "id", {"a": 1}),
        (("", {"a": 1}), {}, None, {"a": 1}),
        ((None, {"a": 1}), {}, None, {"a": 1}),
        ((), {"props": {"a": 1}}, None, {"a": 1}),
        (({},), {}, None, {}),
        ((MappingProxyType({"a": 1}),), {}, None, {"a": 1}),
        ((5,), {}, None, {"value": 5}),
        (("id", "text"), {}, "id", {"value": "text"}),
    ],
)
def test_arguments_of_trace(traces, args, kwargs, id, props):
    Store().put(*args, **kwargs)
    assert traces[0].id == id
    assert traces[0].caller.props == props


def test_ids_count_per_class_object_not_per_name(traces):
    def make():
        class Twin:
            pass

        return Twin

    first, second = make(), make()
    assert [create_tracer(first()).object_id for _ in range(3)] == [1, 2, 3]
    assert create_tracer(second()).object_id == 1
    assert create_tracer(second()).class_name == "Twin"


def test_props_are_copied_at_each_trace(traces):
    own, given = {"n": 1}, {"m": 1}
    store = Store(props=own)
    store.put(given)
    own["n"] = given["m"] = 2
    store.put(given)
    assert [t.object.props for t in traces] == [{"n": 1}, {"n": 2}]
    assert [t.caller.props for t in traces] == [{"m": 1}, {"m": 2}]
    assert store.tracer.props is own


def test_parent_props_are_those_of_the_time_it_was_set(traces):
    props = {"n": 1}
    parent, child = Store(props=props), Store()
    child.put()
    child.tracer.set_parent(parent.tracer)
    props["n"] = 2
    child.put()
    child.tracer.set_parent(None)
    child.put()
    parents = [t.parent_object for t in traces]
    assert parents[0] is None
    assert parents[1].props == {"n": 1}
    assert parents[2] is None


def test_function_names_lose_the_class_they_belong_to(traces):
    Store().put()
    SpecialStore().put()  # a method of a base class counts as one of the object's class
    Store().put_deep()

    def free(tracer) -> None:
        tracer.trace()

    free(Store().tracer)
    names = [t.caller.function_name for t in traces]
    assert names == [
        "put",
        "put",
        "put_deep.<locals>.inner",
        "put_deep.<locals>.<lambda>",
        "test_function_names_lose_the_class_they_belong_to.<locals>.free",
    ]


def test_one_id_in_two_methods_reports_both(traces):
    class Two:
        def __init__(self) -> None:
            self.tracer = create_tracer(self)

        def a(self) -> None:
            self.tracer.trace("same")

        def b(self) -> None:
            self.tracer.trace("same")

    two = Two()
    for _ in range(2):
        two.a()
        two.b()
    assert [t.caller.function_name for t in traces] == ["a", "b", "a", "b"]


def test_two_calls_on_one_line_differ_by_column(traces):
    tracer = Store().tracer
    tracer.trace(), tracer.trace()
    first, second = traces
    assert first.caller.line == second.caller.line
    assert second.caller.column - first.caller.column == len("tracer.trace(), ")


def test_a_tracer_made_before_tracing_was_switched_on_traces_afterwards():
    store = Store()
    assert not store.tracer.enabled
    store.put("lost")
    received: list[Trace] = []
    set_trace_function(received.append)
    assert store.tracer.enabled
    store.put("seen")
    clear_trace_function()
    store.put("lost")
    assert [t.id for t in received] == ["seen"]


def test_clearing_another_function_leaves_the_installed_one():
    received: list[Trace] = []
    set_trace_function(received.append)
    clear_trace_function(print)
    Store().put("seen")
    clear_trace_function(received.append)
    Store().put("lost")
    assert [t.id for t in received] == ["seen"]


def test_context_is_required():
    with pytest.raises(TypeError, match="pass self"):
        create_tracer(None)


def test_a_trace_function_must_be_callable():
    with pytest.raises(TypeError, match="clear_trace_function"):
        set_trace_function(None)


class HostileMeta(type):
    __hash__ = None

    def __eq__(cls, other):
        raise RuntimeError

    def __getattribute__(cls, name):
        raise RuntimeError(name)


class Hostile(metaclass=HostileMeta):
    __slots__ = ("__weakref__",)
    __hash__ = None

    def __eq__(self, other):
        raise RuntimeError

    def __bool__(self):
        raise RuntimeError

    def __getattribute__(self, name):
        raise RuntimeError(name)

    def __iter__(self):
        raise RuntimeError


class HostileMapping(dict):
    def keys(self):
        raise RuntimeError

    def __iter__(self):
        raise RuntimeError

    def __len__(self):
        raise RuntimeError


ODD = {
    "hostile instance": Hostile(),
    "hostile class": Hostile,
    "hostile mapping": HostileMapping(a=1),
    "zero": 0,
    "empty tuple": (),
    "text": "text",
    "bytes": b"x",
    "list": [1, 2],
    "object": object(),
    "type": type,
}


@pytest.mark.parametrize("name", ODD)
def test_odd_objects_and_props_never_raise(traces, name):
    odd = ODD[name]
    tracer = create_tracer(odd, props=odd, parent=odd)
    tracer.trace(odd)
    tracer.trace("id", odd)
    tracer.set_parent(odd)
    tracer.trace(odd, odd)
    assert len(traces) == 3
    same = traces[0].object.ctx is odd
    assert same  # asserted apart: pytest would ask the object for its repr
    assert traces[0].object.class_name == type.__dict__["__name__"].__get__(type(odd))
    assert failures() == 0


def test_a_raising_trace_function_is_reported_once_and_counted(monkeypatch):
    reports = []
    monkeypatch.setattr(sys, "unraisablehook", reports.append)

    def broken(trace):
        raise ValueError("broken receiver")

    set_trace_function(broken)
    store = Store()
    for _ in range(3):
        store.put()
    assert failures() == 3
    (report,) = reports
    assert isinstance(report.exc_value, ValueError)
    assert report.exc_traceback is not None
    set_trace_function(deque().append)
    assert failures() == 0


def test_a_broken_unraisable_hook_does_not_matter(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda report: 1 / 0)
    set_trace_function(lambda trace: 1 / 0)
    Store().put()
    assert failures() == 1


def test_a_trace_function_that_traces_ends():
    store = Store()
    depth = []

    def receive(trace):
        depth.append(1)
        store.put()

    hook, sys.unraisablehook = sys.unraisablehook, lambda report: None
    try:
        set_trace_function(receive)
        store.put()
    finally:
        sys.unraisablehook = hook
    assert failures() >= 1


def test_exits_pass_through():
    def leave(trace):
        raise SystemExit

    set_trace_function(leave)
    with pytest.raises(SystemExit):
        Store().put()


def test_tracing_keeps_no_object_alive(traces):
    parent = Store()
    child = Store(parent=parent.tracer)
    child.put()
    gone = weakref.ref(parent)
    del parent  # no cycle through the tracer: the last reference is enough
    assert gone() is None
    assert traces[0].parent_object.ctx is None
    assert traces[0].parent_object.class_name == "Store"

    gone = weakref.ref(child)
    tracer = child.tracer
    del child
    assert gone() is None
    assert tracer.ctx is None
    tracer.trace()
    assert traces[1].object.ctx is None
    assert traces[1].object.class_name == "Store"


def test_an_object_without_weak_references_is_still_given(traces):
    class Slotted:
        __slots__ = ("tracer",)

    slotted = Slotted()
    slotted.tracer = create_tracer(slotted)
    slotted.tracer.trace()
    assert traces[0].object.ctx is slotted


def test_dead_classes_are_forgotten(traces):
    def use() -> weakref.ref:
        class Passing:
            def run(self) -> None:
                create_tracer(self).trace()

        Passing().run()
        return weakref.ref(Passing)

    gc.collect()
    before = len(trace_module._classes)
    gone = [use() for _ in range(10)]
    traces.clear()
    gc.collect()
    assert all(reference() is None for reference in gone)
    assert len(trace_module._classes) == before


def test_call_sites_are_bounded(traces):
    class Generated:
        pass

    tracer = create_tracer(Generated())
    for number in range(trace_module.MAX_SITES_PER_CLASS + 10):
        exec(compile(f"def f{number}(): tracer.trace()\nf{number}()", "gen", "exec"), locals())
    assert len(tracer._state.sites) <= trace_module.MAX_SITES_PER_CLASS
    assert [t.caller.function_name for t in traces[-2:]] == ["f1032", "f1033"]


def test_threads_share_one_count_of_ids(traces):
    class Shared:
        pass

    ids: list[int] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        barrier.wait()
        for _ in range(200):
            tracer = create_tracer(Shared())
            tracer.trace()
            ids.append(tracer.object_id)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids) == list(range(1, 801))
    assert len(traces) == 800


def test_only_a_little_of_the_standard_library_is_imported():
    code = (
        "import sys; before = set(sys.modules); import hyperlog.trace\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(trace_module.__file__).rsplit("hyperlog", 1)[0]},
    )
    loaded = set(run.stdout.split())
    assert "hyperlog.trace" in loaded
    assert not loaded & {"trio", "typing", "inspect", "logging", "asyncio", "threading", "msgspec"}
