"""The private and undocumented parts of orbax and XLA that are used."""

import pathlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from jax.profiler import ProfileData

from histojax.training import compat, profiling


def heavy(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ x) / 100, x)


@pytest.mark.parametrize("divide", [True, False])
def test_orbax_s_handler_of_arrays_knows_random_keys(tmp_path: pathlib.Path, divide: bool) -> None:
    compat.register_arrays(divide)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "tree", {"key": jax.random.key(3)})
            checkpointer.wait_until_finished()
            abstract = jax.eval_shape(lambda: {"key": jax.random.key(0)})
            key = checkpointer.restore(tmp_path / "tree", abstract)["key"]
    finally:
        compat.register_arrays()
    assert jax.random.bits(key) == jax.random.bits(jax.random.key(3))


def test_a_trace_names_operations_without_the_loops_that_hold_them(tmp_path: pathlib.Path) -> None:
    x, compiled = jnp.ones((64, 64)), jax.jit(heavy).lower(jnp.ones((64, 64))).compile()
    profiling.start(tmp_path)
    jax.block_until_ready(compiled(x))
    jax.profiler.stop_trace()
    (file,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    found = list(compat.traced_operations([ProfileData.from_file(str(file))]))
    names = [name for name, _ in found]
    described = compat.describe_instructions(compiled.as_text() or "")
    assert sum(described[name][0].endswith("dot_general") for name in names if name in described) == 3
    assert not any(name.startswith("while") for name in names)
    assert all(seconds > 0 for _, seconds in found)


def test_a_compiled_program_describes_its_instructions() -> None:
    gradient = jax.jit(jax.grad(lambda x: (x @ x).sum()))
    text = gradient.lower(jnp.ones((8, 8))).compile().as_text() or ""
    described = compat.describe_instructions(text)
    kinds = {kind for kind, _ in described.values()}
    assert "dot: dot_general, backward" in kinds
    assert ("parameter", "f32[8,8]") in {(kind.partition(":")[0], shape) for kind, shape in described.values()}


def test_long_tuples_and_fusions_are_described() -> None:
    hlo = """HloModule m
%fused (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %t = f32[2]{0} tanh(%p), metadata={op_name="jit(f)/jvp(g)/tanh"}
}
ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  %many = (f32[2], f32[2], /*index=2*/f32[2], f32[2]) custom-call(%a)
  ROOT %f = f32[2]{0} fusion(%a), kind=kLoop, calls=%fused
}"""
    described = compat.describe_instructions(hlo)
    assert described["f"] == ("fusion: tanh, forward", "f32[2]")
    assert described["many"] == ("custom-call", "4 arrays")
