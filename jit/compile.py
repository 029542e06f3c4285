"""`jit.compile`: a function that runs as one program where it can, and eagerly where it cannot."""

from __future__ import annotations

import copy
import functools
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import eager
import eager.op
from eager.errors import ArgumentError
from jit import debug, verify
from jit.guards import Arguments, Failure, Identified, Surroundings, differing, reaches, signature
from jit.places import user_location
from jit.program import Changed, Program
from jit.segments import Compiler
from jit.stats import Stats
from jit.tracer import Trace, Tracer


class CompileError(RuntimeError):
    """With ``fullgraph=True``: the function does not become one program; says why."""


@dataclass(eq=False)
class Entry:
    """One traced variant of a function.

    Attributes:
        arguments: guard of the arguments.
        surroundings: guard of everything else.
        seen: the arguments' signature, for explanations.
        pinned: arguments that must be the very same tensors, because the function also reaches
            them by other ways.
        shared: for each tensor argument the first one that shares its memory; None if none do.
        program: the compiled trace; None while it is compiled, or if calls stay eager.
    """

    arguments: Arguments
    surroundings: Surroundings
    seen: tuple[Any, Any]
    pinned: list[tuple[int, Any]]
    shared: list[int] | None
    program: Program | None = None

    def matches(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        """The tensor arguments if all guards hold."""
        tensors = self.arguments.check(args, kwargs)
        if tensors is None or not self.surroundings.holds():
            return None
        if any(tensors[i] is not t for i, t in self.pinned):
            return None
        if self.shared is not None and _sharing(tensors) != self.shared:
            return None
        if self.program is not None and not self.program.accepts(tensors):
            return None
        return tensors


def _sharing(tensors: list[Any]) -> list[int]:
    blocks = [t._storage_id for t in tensors]
    return [blocks.index(b) for b in blocks]


class Compiled(Identified):
    """What `jit.compile` returns: call it like the function.

    Calls may come from several threads; one at a time traces.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        fullgraph: bool = False,
        background: bool = False,
        warmup: int = 1,
        retraces: int = 8,
        compiler: Compiler | None = None,
    ) -> None:
        functools.update_wrapper(self, fn, updated=())
        self._fn = fn
        self._name = getattr(fn, "__qualname__", type(fn).__name__)
        self._fullgraph = fullgraph
        self._background = background
        self._warmup = warmup
        self._retraces = retraces
        self._compiler = compiler
        self._entries: list[Entry] = []
        self._stats = Stats()
        self._lock = threading.Lock()
        self._last: Program | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program whose guards hold; else the function, tracing it if that is due."""
        stats = self._stats
        stats.calls += 1
        if eager.op.interpreting():  # whoever watches sees the single ops
            return self._fn(*args, **kwargs)
        for entry in self._entries:
            tensors = entry.matches(args, kwargs)
            if tensors is None:
                continue
            program = entry.program
            if program is None:
                return self._fn(*args, **kwargs)
            try:
                result = program.run(tensors)
            except (Changed, ArgumentError):  # the latter: a captured tensor got other memory
                continue
            stats.compiled_calls += 1
            self._last = program
            return result
        return self._miss(args, kwargs)

    def __get__(self, instance: Any, _owner: type | None = None) -> Any:
        """As a method, is bound like a function."""
        return self if instance is None else types.MethodType(self, instance)

    def __getattr__(self, name: str) -> Any:
        if name == "_fn":
            raise AttributeError(name)
        return getattr(self._fn, name)

    def __repr__(self) -> str:
        return f"<compiled {self._name}>"

    # --- reports ------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Counters up to now."""
        stats = copy.copy(self._stats)
        stats.fallbacks = list(stats.fallbacks)
        if self._last is not None:
            plan, backward = self._last.plan, self._last.backward
            stats.launches_per_call = plan.launches
            stats.eager_ops_per_call = plan.eager_ops
            stats.backward_launches = backward.launches if backward is not None else 0
        return stats

    def programs(self) -> list[Program]:
        """The compiled variants, oldest first."""
        return [e.program for e in self._entries if e.program is not None]

    def graph(self) -> str:
        """The text of the program used last, or compiled last: forward, then backward."""
        program = self._last or next(reversed(self.programs()), None)
        if program is None:
            return "nothing is compiled yet"
        graphs = [program.plan.graph]
        if program.backward is not None:
            graphs.append(program.backward.graph)
        return "\n\n".join(map(str, graphs))

    # --- tracing ------------------------------------------------------------------------------

    def _miss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that no program fits."""
        if not self._lock.acquire(blocking=False):
            return self._fn(*args, **kwargs)
        try:
            if self._warmup > 0:
                self._warmup -= 1
                return self._fn(*args, **kwargs)
            if self._entries:
                self._stats.guard_misses += 1
            if self._stats.traces > self._retraces:
                self._fall_back(
                    f"{self._stats.traces} traces did not cover its calls; last, "
                    f"{self._difference(args, kwargs)}"
                )
                return self._fn(*args, **kwargs)
            return self._trace(args, kwargs)
        finally:
            self._lock.release()

    def _trace(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the function once, watched, and compiles what was seen."""
        arguments = Arguments(args, kwargs)
        if arguments.unsupported:
            self._fall_back(arguments.unsupported)
            return self._fn(*args, **kwargs)
        self._stats.traces += 1
        surroundings = Surroundings(self._fn)
        tracer = Tracer(arguments.tensors)
        with eager.op.push(tracer):
            result = self._fn(*args, **kwargs)
        changed = surroundings.failure()
        if changed is not None:
            tracer.refuse(f"the call itself changes Python state: {changed}", where=self._place())
        elif arguments.check(args, kwargs) is None:
            tracer.refuse("the call changes its arguments' structure", where=self._place())
        trace = tracer.finish(result)
        entry = self._entry(arguments, surroundings, args, kwargs)
        if changed is None:
            self._entries = [e for e in self._entries if e.surroundings.current()]
            self._entries.append(entry)
        if trace is None:
            self._fall_back(tracer.refused)
        elif self._background:
            threading.Thread(target=self._compile, args=(entry, trace), daemon=True).start()
        else:
            self._compile(entry, trace)
        return result

    def _entry(
        self, arguments: Arguments, surroundings: Surroundings, args: Any, kwargs: Any
    ) -> Entry:
        tensors, arguments.tensors = arguments.tensors, []
        blocks = {t._storage_id for t in tensors}
        pinned = []
        if any(reaches(x, blocks) for x in surroundings.objects()):
            pinned = list(enumerate(tensors))
        shared = _sharing(tensors) if len(blocks) < len(tensors) else None
        return Entry(arguments, surroundings, (signature(args), signature(kwargs)), pinned, shared)

    def _compile(self, entry: Entry, trace: Trace) -> None:
        """Makes the program of an entry.  A failure leaves its calls eager."""
        threads = eager.get_num_threads()
        try:
            program = Program(trace, self._compiler or _default_compiler(), threads)
        except Exception as error:
            if verify.enabled() or self._fullgraph:
                raise
            self._fall_back(f"{type(error).__name__}: {error}")
            return
        self._stats.compile_seconds += program.seconds
        self._last = program
        plan = program.plan
        if self._fullgraph and (plan.eager_ops or plan.launches > 1):
            ops = ", ".join(f"{op} at {where}" for op, where in plan.cuts)
            raise CompileError(f"{self._name} is not one program; opaque ops: {ops}")
        entry.program = program

    # --- explanations -------------------------------------------------------------------------

    def _place(self) -> str:
        code = getattr(self._fn, "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else self._name

    def _fall_back(self, reason: str) -> None:
        debug.show(1, f"{self._name} stays eager", reason)
        if self._fullgraph:
            raise CompileError(f"{self._name}: {reason}")
        self._stats.fall_back(f"{self._name} ({self._place()})", reason)

    def _difference(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Failure | str:
        """What differs from the last trace, and where the call is."""
        if not self._entries:
            return "nothing was compiled"
        last = self._entries[-1]
        found = differing(last.seen, (signature(args), signature(kwargs)))
        found = found or last.surroundings.failure()
        place = user_location()
        what = str(found) if found else "the state of .grad, shared memory or a value that was read"
        return f"{what}, at {place}" if place else what


def _default_compiler() -> Compiler:
    from jit.fusion import compile_segment

    return compile_segment


def compile(
    fn: Callable[..., Any] | None = None,
    *,
    fullgraph: bool = False,
    background: bool = False,
    warmup: int = 1,
    retraces: int = 8,
) -> Any:
    """Makes `fn` run as a compiled program; a decorator, with or without arguments.

    The first `warmup` calls run eagerly, the next is traced (it runs eagerly too) and compiled.
    Later calls whose guards hold run the program; others are traced again, at most `retraces`
    times, and run eagerly after that, with one `CompileWarning` that names what differed.
    Results and side effects on tensors are those of the eager function.

    What is guarded: arguments (tensors by shape, dtype, device, requires_grad, contiguity; numbers,
    strings and containers by value), modules and optimizers the function uses, closures and
    globals, grad mode, default dtype, number of threads, truth values and integers read from
    tensors.  What is not: other Python state behind attributes of attributes.

    Args:
        fn: a function, method or module.
        fullgraph: raise `CompileError` instead of running anything eagerly after the warm-up.
        background: compile in another thread; calls stay eager until it is done.
        warmup: eager calls before the trace.
        retraces: traces beyond the first.
    """
    if fn is None:
        return functools.partial(
            compile, fullgraph=fullgraph, background=background, warmup=warmup, retraces=retraces
        )
    return Compiled(
        fn, fullgraph=fullgraph, background=background, warmup=warmup, retraces=retraces
    )
