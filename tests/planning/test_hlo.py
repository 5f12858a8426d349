"""Bytes that devices exchange: counted by hand, and of programs whose exchanges are known."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxs1.planning.hlo import Collective, collectives

TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=16

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], bf16[4,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %ag = (bf16[4,8]{1,0}, bf16[64,8]{1,0}) all-gather-start(%x), replica_groups=mesh['axis_0'=1,'axis_1'=16] {'axis_1'}, dimensions={0}
  %agd = bf16[64,8]{1,0} all-gather-done(%ag)
  %rs = bf16[4,8]{1,0} reduce-scatter(%agd), replica_groups=[1,16]<=[16], dimensions={0}, to_apply=%add
  ROOT %t = (s32[], bf16[4,8]) tuple(%i, %rs)
}

%condition (p: (s32[], bf16[4,8])) -> pred[] {
  %p = (s32[], bf16[4,8]) parameter(0)
  %n = s32[]{:T(128)} constant(5)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: bf16[4,8]) -> f32[10] {
  %x = bf16[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %t = (s32[], bf16[4,8]) tuple(%zero, %x)
  %w = (s32[], bf16[4,8]) while(%t), condition=%condition, body=%bodyNOTE
  %y = f32[10]{0} constant({...})
  %r = (f32[10]{0}, f32[6]{0}) all-reduce(%y, %y), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %c = (f32[10]{0}, f32[10]{0}, u32[], u32[]) collective-permute-start(%y), source_target_pairs={{0,1},{1,0}}
  ROOT %d = f32[10]{0} collective-permute-done(%c)
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("note", "trips"), [("", 5), (', backend_config={"known_trip_count":{"n":"7"}}', 7)]
)
def test_by_hand(note, trips):
    found = collectives(TEXT.replace("NOTE", note))
    assert found == {
        "all-gather": Collective(trips, trips * 64 * 8 * 2 * 15 / 16),
        "reduce-scatter": Collective(trips, trips * 4 * 8 * 2 * 15),
        "all-reduce": Collective(1, 2 * (10 + 6) * 4 * 3 / 4),
        "collective-permute": Collective(1, 40),
    }


def test_of_a_compiled_program():
    """4 devices exchange heads for sequence and back in each of 6 steps; gather once."""
    mesh = Mesh(jax.devices()[:4], ("x",))

    def local(x):
        def step(x, _):
            y = lax.all_to_all(x, "x", 1, 0, tiled=True)
            return jnp.sin(lax.all_to_all(y, "x", 0, 1, tiled=True)), None

        x, _ = lax.scan(step, x, None, length=6)
        return lax.all_gather(x, "x", tiled=True)

    run = jax.shard_map(local, mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=False)
    x = jax.ShapeDtypeStruct((8, 12), jnp.float32, sharding=NamedSharding(mesh, P("x")))
    found = collectives(jax.jit(run).lower(x).compile().as_text())
    assert found["all-to-all"] == Collective(12, 12 * 2 * 12 * 4 * 3 / 4)
    assert found["all-gather"] == Collective(1, 8 * 12 * 4 * 3 / 4)
